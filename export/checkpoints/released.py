"""Finds and reads released files, the sources of the converted ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from cosmos_triton.export.checkpoints.huggingface import COMPANIONS, find_model_folder, read_weights, weight_files
from cosmos_triton.export.checkpoints.lora import CONFIG as ADAPTER_CONFIG
from cosmos_triton.export.checkpoints.lora import read_adapter
from cosmos_triton.export.checkpoints.torch_files import read_torch_file
from cosmos_triton.runtime.errors import CheckpointError


class MissingError(CheckpointError):
    """A released file or folder is not in the checkpoint directory; the message is its path there."""


def unchanged(_: str, tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by their released names. `merge` is applied to each when it is written."""

    tensors: dict[str, Tensor]
    merge: Callable[[str, Tensor], Tensor] = unchanged


@dataclass(frozen=True, slots=True)
class ReleasedFiles:
    """The released files of one converted file."""

    files: list[Path]
    read: Callable[[], Weights]
    companions: list[Path] = field(default_factory=list)  # copied beside the converted file


# Searches a checkpoint directory; raises MissingError.
Find = Callable[[Path], ReleasedFiles]


def torch_file(source: str, *, items: tuple[str, ...] = ()) -> Find:
    """A file written by torch.save or torch.jit.save. `items` names the tensors of a file with a tuple."""

    def find(directory: Path) -> ReleasedFiles:
        path = directory / source
        if not path.is_file():
            raise MissingError(source)
        return ReleasedFiles([path], partial(read, path))

    def read(path: Path) -> Weights:
        tensors = read_torch_file(path)
        return Weights({items[int(key)]: tensor for key, tensor in tensors.items()} if items else tensors)

    return find


def transformers_folder(folder: str, repository: str) -> Find:
    """A model folder of transformers, plain or as a Hugging Face cache."""

    def find(directory: Path) -> ReleasedFiles:
        model = _model_folder(directory, folder, repository, marker="config.json")
        weights = weight_files(model)
        companions = [model / name for name in COMPANIONS if (model / name).is_file()]
        return ReleasedFiles([*weights, *companions], lambda: Weights(read_weights(weights)), companions)

    return find


def first_of(folders: Callable[[Path], list[str]], find_in: Callable[[str], Find]) -> Find:
    """What `find_in` finds in the first of several folders. MissingError names the file in the first choice."""

    def find(directory: Path) -> ReleasedFiles:
        missing: list[MissingError] = []
        for folder in folders(directory):
            try:
                return find_in(folder)(directory)
            except MissingError as error:
                missing.append(error)
        raise missing[0]

    return find


def adapted(base: Find, folder: str, repository: str) -> Find:
    """The model that `base` finds, with the LoRA adapter of another folder merged into it."""

    def find(directory: Path) -> ReleasedFiles:
        adapter = _model_folder(directory, folder, repository, marker=ADAPTER_CONFIG)
        release = base(directory)
        files = [*release.files, adapter / ADAPTER_CONFIG, *weight_files(adapter)]
        return ReleasedFiles(files, partial(read, release, adapter), release.companions)

    def read(release: ReleasedFiles, folder: Path) -> Weights:
        tensors, adapter = release.read().tensors, read_adapter(folder)
        adapter.check({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return Weights(tensors, adapter.merge)

    return find


def _model_folder(directory: Path, folder: str, repository: str, *, marker: str) -> Path:
    found = find_model_folder(directory / folder, repository, marker=marker)
    if found is None:
        raise MissingError(f"{folder}/{marker}")
    return found
