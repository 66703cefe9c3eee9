"""Writes safetensors files one tensor at a time.

The library's `save_file` needs every tensor in memory before it writes the first byte. Here a tensor may be a view of a
memory-mapped file or be computed when it is written, so memory holds one tensor and not one model.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cosmos_triton.export.checkpoints.manifest import CHUNK_BYTES, Progress
from cosmos_triton.runtime.mapped_file import DTYPES

ALIGNMENT = 8
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], *, value: Callable[[str, Tensor], Tensor], progress: Progress
) -> str:
    """Write `value(name, tensor)`, of the same dtype and shape, for each of `tensors`. Returns the file's SHA-256.

    The file is renamed to `path` when it is complete and on disk.
    """
    # The widest first, so that every tensor stays aligned to its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    digest = hashlib.sha256()
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            header = _header(names, tensors)
            digest.update(header)
            file.write(header)
            for name in names:
                data = _bytes_of(value(name, tensors[name]))
                for start in range(0, len(data), CHUNK_BYTES):
                    chunk = data[start : start + CHUNK_BYTES]
                    digest.update(chunk)
                    file.write(chunk)
                    progress(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return digest.hexdigest()


def _header(names: list[str], tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.dtype.itemsize
        entries[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
