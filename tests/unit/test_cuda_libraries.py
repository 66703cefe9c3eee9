"""Which CUDA libraries are loaded: read from a process's maps, and held against those that torch was built with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cosmos_triton.runtime import cuda_libraries
from cosmos_triton.runtime.cuda_libraries import Library, differences, loaded_libraries, parse_version

MAPS = """\
7f0000000000-7f0000100000 r-xp 00000000 08:01 1 /opt/torch/nvidia/cudnn/lib/libcudnn.so.9
7f0000100000-7f0000200000 r--p 00100000 08:01 1 /opt/torch/nvidia/cudnn/lib/libcudnn.so.9
7f0000200000-7f0000300000 r-xp 00000000 08:01 2 /opt/torch/nvidia/cudnn/lib/libcudnn_ops.so.9
7f0000300000-7f0000400000 r-xp 00000000 08:01 3 /opt/torch/nvidia/cu13/lib/libcublasLt.so.13
7f0000400000-7f0000500000 rw-p 00000000 00:00 0 [heap]
7f0000500000-7f0000600000 r-xp 00000000 08:01 4 /usr/lib/x86_64-linux-gnu/libcudnn.so.9.14.0
"""


def test_libraries_are_found_once_a_file(tmp_path: Path) -> None:
    (tmp_path / "maps").write_text(MAPS)
    found = loaded_libraries(tmp_path / "maps")
    assert [(library.name, Path(library.path).name) for library in found] == [
        ("cudnn", "libcudnn.so.9"),
        ("cudnn", "libcudnn.so.9.14.0"),
        ("cublasLt", "libcublasLt.so.13"),
    ]
    assert all(library.version is None for library in found)  # the files are not there
    assert loaded_libraries(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("name", "number", "version"),
    [
        ("cudnn", 91900, (9, 19, 0)),
        ("cudnn", 8905, (8, 9, 5)),
        ("cublasLt", 130100, (13, 1, 0)),
        ("cudart", 13000, (13, 0)),
        ("cudart", 12080, (12, 8)),
    ],
)
def test_versions_are_read_as_each_library_writes_them(name: str, number: int, version: tuple[int, ...]) -> None:
    assert parse_version(name, number) == version


def test_what_torch_was_not_built_with_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_libraries, "_built_with_cudnn", lambda: (9, 19, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    ours = [Library("cudnn", "/a", (9, 19, 0)), Library("cublasLt", "/b", None), Library("cudart", "/c", (13, 0))]
    assert list(differences(ours)) == []
    system = [Library("cudnn", "/usr/lib/libcudnn.so.9", (9, 14, 0)), *ours[1:]]
    assert list(differences(system)) == ["cudnn 9.14.0 (/usr/lib/libcudnn.so.9): torch was built with 9.19.0"]
    assert list(differences([*system, *ours]))[-3:] == [
        f"{name} is loaded from more than one file" for name in ("cublasLt", "cudart", "cudnn")
    ]


def test_a_cudnn_that_torch_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise RuntimeError("cuDNN version incompatibility")

    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", refuse)
    assert list(differences([])) == ["cudnn: cuDNN version incompatibility"]
