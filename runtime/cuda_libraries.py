"""Which CUDA libraries this process has really loaded, against those that torch was built with.

An LD_LIBRARY_PATH that names a system folder can put another cuDNN in front of torch's own; torch then says nothing,
and takes slower kernels.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

MAPS = Path("/proc/self/maps")
# The library's file, and the function that gives its version.
LIBRARIES = {
    "cudnn": (r"libcudnn\.so", "cudnnGetVersion"),
    "cublasLt": (r"libcublasLt\.so", "cublasLtGetVersion"),
    "cudart": (r"libcudart\.so", "cudaRuntimeGetVersion"),
}


@dataclass(frozen=True, slots=True)
class Library:
    """version: as the library itself says; None where it does not."""

    name: str
    path: str
    version: tuple[int, ...] | None

    def __str__(self) -> str:
        return f"{self.name} {dotted(self.version)} ({self.path})"


def dotted(version: tuple[int, ...] | None) -> str:
    return ".".join(map(str, version)) if version else "of unknown version"


def loaded_libraries(maps: Path = MAPS) -> list[Library]:
    """In the order of LIBRARIES; a library that is mapped from two files is there twice."""
    try:
        paths = re.findall(r"/\S+\.so\S*$", maps.read_text(), flags=re.MULTILINE)
    except OSError:
        return []
    return [
        Library(name, path, _version(name, path))
        for name, (pattern, _) in LIBRARIES.items()
        for path in dict.fromkeys(paths)
        if re.match(pattern, Path(path).name)
    ]


def differences(libraries: list[Library]) -> Iterator[str]:
    """What of them is not what torch was built with, a sentence each."""
    built = {"cudnn": _built_with_cudnn(), "cudart": _numbers(torch.version.cuda)}
    for library in libraries:
        expected = built.get(library.name)
        if expected and library.version and library.version[: len(expected)] != expected:
            yield f"{library}: torch was built with {dotted(expected)}"
    names = [library.name for library in libraries]
    yield from (f"{name} is loaded from more than one file" for name in sorted(set(names)) if names.count(name) > 1)
    if torch.backends.cudnn.is_available():
        try:
            torch.backends.cudnn.version()
        except RuntimeError as error:
            yield f"cudnn: {error}"


def parse_version(name: str, number: int) -> tuple[int, ...]:
    """The number that a library gives as its version: cuDNN 91900 and cuBLAS 130100 are 9.19.0 and 13.1.0."""
    if name == "cudart":
        return number // 1000, number % 1000 // 10
    step = 10_000 if number >= 10_000 else 1000
    return number // step, number % step // 100, number % 100


def _version(name: str, path: str) -> tuple[int, ...] | None:
    """A library that is mapped is not loaded again: the handle is that of the one in use."""
    try:
        function = getattr(ctypes.CDLL(path, mode=ctypes.RTLD_LOCAL), LIBRARIES[name][1])
    except (OSError, AttributeError):
        return None
    if name == "cudart":
        number = ctypes.c_int()
        return parse_version(name, number.value) if function(ctypes.byref(number)) == 0 else None
    function.restype = ctypes.c_size_t
    return parse_version(name, function())


def _built_with_cudnn() -> tuple[int, ...]:
    compiled = getattr(torch._C, "_cudnn", None)
    return tuple(compiled.getCompileVersion()) if compiled else ()


def _numbers(version: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")) if version else ()
