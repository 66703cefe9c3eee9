"""Reads files of torch.save and torch.jit.save without running any code from them.

Both are pickles, and a pickle may call any function by name. The unpickler here has a short list of harmless names and
refuses a file that asks for another. Tensors are backed by a memory map of the file in all three layouts:

- a zip archive by torch.save: `data.pkl`, and one uncompressed member a storage;
- a zip archive by torch.jit.save: the same, with classes of the module's own code (`__torch__...`) for modules. They
  become inert records; the code beside them is not read;
- the layout of torch.save before 1.6: five pickles, then the storages one after another, each after its length.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.mapped_file import Shape, map_file, strided_tensor

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """Every tensor saved in `path`, by its dotted key: "layers.0.weight", or "0" for the first of a tuple.

    Of a TorchScript archive these are the keys of its state_dict() and plain tensor attributes.

    Raises:
        CheckpointError: the file cannot be read, or its pickle asks for a name that is not on the list.
    """
    try:
        with path.open("rb") as file:
            is_archive = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        content = _read_archive(path) if is_archive else _read_legacy(path)
        return dict(_flatten(content))
    except _Refused as refused:
        raise CheckpointError(f"{path}: refuses to load: the pickle asks for '{refused}'") from refused
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:  # of arbitrary bytes, zipfile and pickle raise many types
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: not a whole torch file: {reason}") from error


def _flatten(content: Any, key: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield key, content
        return
    if isinstance(content, _Record):
        content = content.attributes
    elif isinstance(content, (list, tuple)):
        content = dict(enumerate(content))
    if isinstance(content, Mapping):
        for name, child in content.items():
            yield from _flatten(child, f"{key}.{name}" if key else str(name))


class _Refused(Exception):
    """The message is the name that is not on the list."""


class _Record:
    """Replaces an instance of a class of the file: its attributes, without behaviour."""

    attributes: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.attributes = state


# Arguments: key and length in bytes of a storage.
_StorageOf = Callable[[str, int], torch.UntypedStorage]


class _Unpickler(pickle.Unpickler):
    """Without `storage_of`, tensors are on meta, and `storages` collects the length of each storage in bytes."""

    def __init__(self, file: BinaryIO, storage_of: _StorageOf | None = None) -> None:
        super().__init__(file, encoding="utf-8")
        self.storage_of = storage_of
        self.storages: dict[str, int] = {}
        self.globals: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch", "Size"): lambda shape=(): tuple(shape),
            # Older transformer layers store their calibration as a stream of bytes.
            ("_io", "BytesIO"): _Record,
            ("_codecs", "encode"): _Record,
            # TorchScript marks typed lists.
            ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
            **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")},
            **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in STORAGE_DTYPES.values()},
            **{("torch", storage): dtype for storage, dtype in STORAGE_DTYPES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Record
        try:
            return self.globals[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> tuple[torch.UntypedStorage | None, torch.dtype]:
        kind, dtype, key, _location, elements, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or view not in ([], [None]):
            raise ValueError(f"an unknown kind of storage: {pid!r}")
        size = elements * dtype.itemsize
        self.storages[key] = max(size, self.storages.get(key, 0))
        return (self.storage_of(key, size) if self.storage_of else None), dtype

    def _tensor(
        self,
        storage: tuple[torch.UntypedStorage | None, torch.dtype],
        offset: int,
        shape: Shape,
        stride: Shape,
        *_: object,
    ) -> Tensor:
        untyped, dtype = storage
        if untyped is None:
            return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        return strided_tensor(untyped, dtype, shape, stride, offset)


def _read_archive(path: Path) -> Any:
    mapped = map_file(path)
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(names) != 1:
            raise ValueError("the archive has no data.pkl")
        root = names[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")

        def storage_of(key: str, size: int) -> torch.UntypedStorage:
            member = archive.getinfo(f"{root}data/{key}")
            start = _data_offset(file, member)
            if member.compress_type != zipfile.ZIP_STORED or size > member.file_size:
                raise ValueError(f"storage {key}: {member.file_size} bytes, expected {size}")
            return _cut(mapped, start, size)

        return _Unpickler(io.BytesIO(archive.read(names[0])), storage_of).load()


def _data_offset(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin, after the local header with its variable-length name and extra field."""
    file.seek(member.header_offset)
    name_length, extra_length = struct.unpack("<26xHH", file.read(30))
    return member.header_offset + 30 + name_length + extra_length


def _read_legacy(path: Path) -> Any:
    mapped = map_file(path)
    with path.open("rb") as file:
        if _Unpickler(file).load() != LEGACY_MAGIC or _Unpickler(file).load() != LEGACY_PROTOCOL:
            raise ValueError("neither a zip archive nor a file of torch before 1.6")
        if not _Unpickler(file).load()["little_endian"]:
            raise ValueError("its numbers are big-endian")
        start = file.tell()
        # The offsets of storages are known only after the pickle, which is therefore read twice.
        first = _Unpickler(file)
        first.load()
        offsets: dict[str, int] = {}
        offset = 0
        keys = _Unpickler(file).load()
        offset = file.tell()
        for key in keys:
            offsets[key] = offset + 8  # the length, in elements, is an int64
            offset = offsets[key] + first.storages[key]
        if offset > mapped.nbytes():
            raise ValueError(f"{mapped.nbytes()} bytes, expected {offset}")
        file.seek(start)
        return _Unpickler(file, lambda key, size: _cut(mapped, offsets[key], size)).load()


def _cut(mapped: torch.UntypedStorage, start: int, size: int) -> torch.UntypedStorage:
    if not 0 <= start <= start + size <= mapped.nbytes():
        raise ValueError(f"a storage of {size} bytes at byte {start} lies outside the file")
    return mapped[start : start + size]
