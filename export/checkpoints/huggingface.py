"""Hugging Face model folders on disk: where they are, and their weights, in one file or in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from cosmos_triton.export.checkpoints.torch_files import read_torch_file
from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.mapped_file import SafetensorsFile

# Files beside the weights that the runtime may need: configuration, tokenizer, image pre-processing.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")
# Files to download from such a repository on the hub.
MODEL_PATTERNS = (
    *COMPANIONS,
    "adapter_config.json",
    *(name.replace("model.", "model*.") for name in WEIGHT_FILES),
    *(f"{name}.index.json" for name in WEIGHT_FILES),
)


def find_model_folder(folder: Path, repository: str, *, marker: str = "config.json") -> Path | None:
    """The folder of `repository` with the file `marker`: `folder` itself, or a snapshot of a Hugging Face cache in it.

    Raises:
        CheckpointError: the cache has several snapshots, and its refs/main names none of them.
    """
    if (folder / marker).is_file():
        return folder
    cache = folder / f"models--{repository.replace('/', '--')}"
    snapshots = {found.parent.name: found.parent for found in cache.glob(f"snapshots/*/{marker}")}
    main = cache / "refs" / "main"
    if main.is_file() and main.read_text().strip() in snapshots:
        return snapshots[main.read_text().strip()]
    if len(snapshots) > 1:
        raise CheckpointError(f"{cache}: {len(snapshots)} snapshots, {', '.join(sorted(snapshots))}: keep one")
    return next(iter(snapshots.values()), None)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model: safetensors rather than pickles, one file rather than shards.

    Raises:
        CheckpointError: there are none, or a shard that the index names is missing.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = sorted({folder / Path(str(shard)).name for shard in read_json(index, "weight_map").values()})
            missing = [shard for shard in shards if not shard.is_file()]
            if missing:
                raise CheckpointError(f"{missing[0]}: no such file, and {index.name} names it")
            return shards
    raise CheckpointError(f"{folder}: no weights: expected model.safetensors or pytorch_model.bin, whole or in shards")


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """Every tensor of the files, as views of memory maps."""
    tensors: dict[str, Tensor] = {}
    for path in files:
        if path.suffix == ".safetensors":
            shard = SafetensorsFile(path)
            tensors |= {name: shard.tensor(name) for name in shard.shapes}
        else:
            tensors |= read_torch_file(path)
    return tensors


def read_json(path: Path, key: str | None = None) -> dict[str, Any]:
    """The object in a JSON file, or the object under its `key`. Raises CheckpointError if there is none."""
    try:
        content = json.loads(path.read_text())
        content = content if key is None else content[key]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path}: not the JSON that was expected: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not the JSON that was expected: no object")
    return content
