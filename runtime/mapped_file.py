"""Tensors backed by a memory-mapped file, and a safetensors reader on top.

The safetensors library maps files privately without MAP_NORESERVE, so Linux accounts for the whole file: a 26 GB
checkpoint cannot be opened on a machine with 24 GB. The mapping here reserves nothing.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cosmos_triton.runtime.errors import CheckpointError

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH = struct.Struct("<Q")  # length of the header, which follows
_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # Python's mmap module does not name it


def map_file(path: Path) -> torch.UntypedStorage:
    """The bytes of a file, copy-on-write: writing to them never changes the file."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return torch.UntypedStorage(0)
        flags, access = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        mapping = mmap.mmap(file.fileno(), 0, flags=flags, prot=access)
    return torch.frombuffer(mapping, dtype=torch.uint8).untyped_storage()


def strided_tensor(
    storage: torch.UntypedStorage, dtype: torch.dtype, shape: Shape, stride: Shape, offset: int
) -> Tensor:
    """A tensor over `storage`; `offset` and `stride` in elements.

    Raises:
        ValueError: a negative number, or a tensor that reaches past the end of the storage.
    """
    if min((offset, *shape, *stride), default=0) < 0 or len(shape) != len(stride):
        raise ValueError(f"tensor of shape {list(shape)}, stride {list(stride)}, offset {offset}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if math.prod(shape) and (last + 1) * dtype.itemsize > storage.nbytes():
        raise ValueError(f"tensor of shape {list(shape)} reaches past its {storage.nbytes()} bytes of storage")
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


class SafetensorsFile:
    """A safetensors file. Opening it reads and checks the header; weights are paged in when a tensor is used.

    Raises:
        CheckpointError: the file does not exist, or is not a complete safetensors file.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._entries, self._data_start = _read_header(file)
            self._storage = map_file(path)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: no such file") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
        expected = self._data_start + max((entry.end for entry in self._entries.values()), default=0)
        actual = self._storage.nbytes()
        if actual != expected:
            raise CheckpointError(f"{path}: {actual} bytes, its header says {expected}: cut short or damaged")

    @property
    def shapes(self) -> Shapes:
        return {name: entry.shape for name, entry in self._entries.items()}

    def tensor(self, name: str) -> Tensor:
        """The named tensor, a view of the mapped file."""
        entry = self._entries[name]
        data = self._storage[self._data_start + entry.start : self._data_start + entry.end]
        return torch.empty(0, dtype=entry.dtype).set_(data).view(entry.shape)


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: torch.dtype
    shape: Shape
    start: int  # bytes after the header
    end: int


def _read_header(file: BinaryIO) -> tuple[dict[str, _Entry], int]:
    """Entries by name, and the offset of the data. Raises ValueError if the header is invalid."""
    prefix = file.read(_LENGTH.size)
    (length,) = _LENGTH.unpack(prefix) if len(prefix) == _LENGTH.size else (0,)
    if not 0 < length <= _MAX_HEADER:
        raise ValueError("it has no header")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("it has no header")
    header.pop("__metadata__", None)
    return {name: _parse_entry(name, entry) for name, entry in header.items()}, _LENGTH.size + length


def _parse_entry(name: str, raw: Any) -> _Entry:
    try:
        entry = _Entry(DTYPES[raw["dtype"]], tuple(raw["shape"]), *raw["data_offsets"])
        size = math.prod(entry.shape) * entry.dtype.itemsize
        consistent = min((entry.start, *entry.shape)) >= 0 and entry.end - entry.start == size
    except (KeyError, TypeError) as error:
        raise ValueError(f"its header says {raw!r} of {name}") from error
    if not consistent:
        raise ValueError(f"its header says {raw!r} of {name}")
    return entry
