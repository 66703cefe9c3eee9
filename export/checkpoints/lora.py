"""Low-rank adapters (LoRA, arXiv 2106.09685) merged into the weights they adapt: W + alpha / r * B A."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cosmos_triton.export.checkpoints.huggingface import read_json, read_weights, weight_files
from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.mapped_file import Shapes

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # of every key in an adapter's file

# Settings that do not change the merged weights. Any other must be off, so that none is silently ignored.
HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
}
OFF: tuple[object, ...] = (None, False, "none", [], {})


@dataclass(frozen=True, slots=True)
class Adapter:
    """The factors A [r, in] and B [out, r] of each adapted weight [out, in], by the weight's name."""

    path: Path
    scale: float
    factors: dict[str, tuple[Tensor, Tensor]]

    def check(self, shapes: Shapes) -> None:
        """Raises CheckpointError unless every adapted weight exists with the shape of its factors' product."""
        for name, (a, b) in self.factors.items():
            product = (b.shape[0], a.shape[1])
            if shapes.get(name) != product:
                raise CheckpointError(
                    f"{self.path}: adapts {name} of shape {list(product)}, the model has no such weight"
                )

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """The adapted weight, computed in fp32 and rounded once; the weight itself where it is not adapted."""
        if name not in self.factors:
            return weight
        a, b = (factor.float() for factor in self.factors[name])
        return torch.addmm(weight.float(), b, a, alpha=self.scale).to(weight.dtype)


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a PEFT folder: adapter_config.json and its weights.

    Raises:
        CheckpointError: the adapter is of another kind, or has a setting that a plain merge does not support.
    """
    path = folder / CONFIG
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type {config.get('peft_type')!r} cannot be merged, only 'LORA'")
    for key, value in config.items():
        plain_start = key == "init_lora_weights" and value in (True, "gaussian")
        if key not in HARMLESS and value not in OFF and not plain_start:
            raise CheckpointError(f"{path}: {key} {value!r} cannot be merged, only a plain adapter without it")
    rank, alpha, targets = (config.get(key) for key in ("r", "lora_alpha", "target_modules"))
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or not isinstance(targets, list) or rank < 1:
        raise CheckpointError(f"{path}: expected numbers r and lora_alpha, and a list of target_modules")

    tensors = read_weights(weight_files(folder))
    factors = {}
    for module in sorted({key.partition(".lora_")[0] for key in tensors}):
        a, b = (tensors.pop(f"{module}.lora_{factor}.weight", None) for factor in "AB")
        if a is None or b is None or a.shape[:1] != (rank,) or b.shape[1:] != (rank,):
            raise CheckpointError(f"{path}: {module}: not a pair of factors of rank {rank}")
        factors[f"{module.removeprefix(PREFIX)}.weight"] = (a, b)
    adapted = {name.split(".")[-2] for name in factors}
    if tensors or adapted != {target.split(".")[-1] for target in targets}:
        raise CheckpointError(
            f"{path}: target_modules {targets}, but the file adapts {sorted(adapted)} {list(tensors)}"
        )
    return Adapter(path, alpha / rank, factors)
