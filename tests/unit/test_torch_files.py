"""Files of torch.save and torch.jit.save: read as they were saved, and never obeyed."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cosmos_triton.export.checkpoints.torch_files import read_torch_file
from cosmos_triton.runtime.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("steps", torch.arange(5))
        self.sizes = [1, 2]
        self.label = "part"

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Part()
        self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Conv3d(1, 1, 3), nn.BatchNorm2d(2)])
        self.transposed = nn.Parameter(torch.randn(4, 3).t())
        self.short = nn.Parameter(torch.randn(3).bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


def saved_content() -> dict[str, Any]:
    shared = torch.randn(6, 8)
    tensors = {
        "whole": shared,
        "transposed": shared.t(),
        "strided": shared[1:5:2, ::3],
        "f16": torch.randn(2, 3).half()[:, 1:],
        "bf16": torch.randn(5).bfloat16(),
        "f64": torch.randn(5).double(),
        "i64": torch.tensor(3),
        "i32": torch.arange(4, dtype=torch.int32),
        "u8": torch.arange(7, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.randn(2)),
    }
    return {
        "state_dict": OrderedDict(tensors),
        "pair": (torch.ones(1), [torch.zeros(2)]),
        "epoch": 3,
        "dtype": torch.half,
    }


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_tensors_of_torch_save_are_read_as_saved(tmp_path: Path, is_zip: bool) -> None:
    content = saved_content()
    path = tmp_path / "file.pt"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    found = read_torch_file(path)
    expected = {f"state_dict.{name}": tensor for name, tensor in content["state_dict"].items()}
    expected |= {"pair.0": content["pair"][0], "pair.1.0": content["pair"][1][0]}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    "compile_", [torch.jit.script, lambda m: torch.jit.trace(m, torch.zeros(1, 3))], ids=["script", "trace"]
)
def test_a_torchscript_archive_is_read_as_its_state_dict(tmp_path: Path, compile_: Callable[[nn.Module], Any]) -> None:
    module = compile_(Whole().eval())
    path = tmp_path / "module.jit"
    module.save(str(path))
    found, expected = read_torch_file(path), module.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


class Calls:
    """Pickled, it asks for a function to be called."""

    def __init__(self, function: Callable[..., Any], *args: object) -> None:
        self.what = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.what


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (eval, "__builtin__.eval"),
        (getattr, "__builtin__.getattr"),
        (torch.load, "torch.serialization.load"),
        (torch.jit.load, "torch.jit._serialization.load"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pickle_that_asks_for_a_function_is_refused(
    tmp_path: Path, is_zip: bool, function: Callable[..., Any], name: str
) -> None:
    path, witness = tmp_path / "model.pt", tmp_path / "ran"
    content = {"weight": torch.ones(2), "other": Calls(function, f"touch {witness}")}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=rf"model\.pt: refuses to load: the pickle asks for '{name}'$"):
        read_torch_file(path)
    assert not witness.exists()


def test_code_in_a_torchscript_archive_does_not_run(tmp_path: Path) -> None:
    """Nor is it looked at: an archive whose code is nonsense still gives its weights."""
    whole, path = tmp_path / "whole.jit", tmp_path / "nonsense.jit"
    torch.jit.script(Whole().eval()).save(str(whole))
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, b"nonsense" if "/code/" in member.filename else source.read(member))
    with pytest.raises(RuntimeError):
        torch.jit.load(path)
    assert torch.equal(read_torch_file(path)["part.linear.weight"], read_torch_file(whole)["part.linear.weight"])


@pytest.mark.parametrize("layout", ["zip", "legacy", "torchscript"])
def test_damaged_files_give_an_error_that_names_them(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "model.pt"
    if layout == "torchscript":
        torch.jit.script(Whole().eval()).save(str(path))
    else:
        torch.save(saved_content(), path, _use_new_zipfile_serialization=layout == "zip")
    content = path.read_bytes()
    for length in range(0, len(content) - 1, 97):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"model\.pt: "):
            read_torch_file(path)
    dice = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(len(content))] = dice.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):  # nothing else; and a damaged weight is still a weight
            read_torch_file(path)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_file_of_a_big_endian_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_zip: bool
) -> None:
    """Its numbers would be read as others, and nobody would notice."""
    path = tmp_path / "model.pt"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "byteorder", "big")
        torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=r"model\.pt: .*its numbers are big-endian"):
        read_torch_file(path)


class Storage: ...


class Rebuilt:
    """Pickled, a tensor over the storage."""

    def __init__(self, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.view = (offset, shape, stride)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return torch._utils._rebuild_tensor_v2, (Storage(), *self.view, False, OrderedDict())


def write_archive(path: Path, tensor: Rebuilt, storage: bytes, *, elements: int, compression: int = 0) -> None:
    """A file of torch.save with one tensor, whose storage claims to have so many floats."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", elements) if isinstance(value, Storage) else None

    pickled = io.BytesIO()
    Pickler(pickled, protocol=2).dump({"weight": tensor})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickled.getvalue())
        archive.writestr("model/data/0", storage, compression)
        archive.writestr("model/data/1", bytes(1000))


@pytest.mark.parametrize(
    ("elements", "compression", "is_read"),
    [(4, zipfile.ZIP_STORED, True), (5, zipfile.ZIP_STORED, False), (4, zipfile.ZIP_DEFLATED, False)],
    ids=["whole", "one more than the file has", "compressed"],
)
def test_a_storage_is_no_larger_than_its_part_of_the_file(
    tmp_path: Path, elements: int, compression: int, is_read: bool
) -> None:
    """What follows it in the file is another part, not more of the tensor."""
    path = tmp_path / "model.pt"
    write_archive(path, Rebuilt(0, (elements,), (1,)), bytes(16), elements=elements, compression=compression)
    if is_read:
        assert torch.equal(read_torch_file(path)["weight"], torch.zeros(4))
    else:
        with pytest.raises(CheckpointError, match=rf"model\.pt: .*storage 0: 16 bytes, expected {4 * elements}"):
            read_torch_file(path)


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [(0, (5,), (1,)), (2, (3,), (1,)), (0, (2, 2), (3, 1)), (-1, (2,), (1,)), (3, (2,), (-1,)), (0, (2, 2), (1,))],
)
def test_a_tensor_may_not_reach_out_of_its_storage(
    tmp_path: Path, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    """Else a file could have other memory written into a checkpoint."""
    path = tmp_path / "model.pt"
    write_archive(path, Rebuilt(offset, shape, stride), bytes(16), elements=4)
    with pytest.raises(CheckpointError, match=r"model\.pt: .*tensor of shape"):
        read_torch_file(path)
