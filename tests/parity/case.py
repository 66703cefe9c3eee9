"""One parity case: a folder with config.json, and optionally weights.safetensors and io.safetensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Case:
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def io(self) -> dict[str, Tensor]:
        """Inputs and expected outputs, as stored."""
        return load_file(self.folder / "io.safetensors")

    def weights(self, prefix: str = "", *, file: str = "weights.safetensors") -> dict[str, Tensor]:
        """Weights whose key starts with `prefix`, which is taken off; bf16 on disk, fp32 here."""
        tensors = load_file(self.folder / file)
        return {
            key.removeprefix(prefix): tensor.float() if tensor.is_floating_point() else tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }


def assert_equal(name: str, actual: Tensor, expected: Tensor) -> None:
    """For integers and bytes: the same shape and the same values."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    wrong = (actual != expected).sum().item()
    assert wrong == 0, f"{name}: {wrong} of {expected.numel()} values differ"


def assert_close(name: str, actual: Tensor, expected: Tensor, *, relative: float = 1e-4) -> None:
    """For floats: the largest deviation, relative to the largest expected magnitude."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    expected = expected.double()
    deviation = (actual.double() - expected).abs().max().item()
    scale = expected.abs().max().item()
    assert deviation <= relative * scale, f"{name}: deviation {deviation:.3g} > {relative} * {scale:.3g}"
