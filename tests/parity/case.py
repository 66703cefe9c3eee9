"""One parity case: a folder with config.json, and optionally weights.safetensors and io.safetensors.

A case may hold a part of its family's tensors. A check reads the inputs that it needs by `case[name]`, and compares by
`case.expect_close` and `case.expect_equal`, which pass over an output that the case does not hold. `case.finish` then
requires that something was compared, and that no tensor is left that nobody looked at.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor


class Case:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used: set[str] = set()
        self._comparisons = 0

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def _io(self) -> dict[str, Tensor]:
        file = self.folder / "io.safetensors"
        return load_file(file) if file.exists() else {}

    def __getitem__(self, name: str) -> Tensor:
        """An input or an expected output, as stored."""
        assert name in self._io, f"{self.folder.name}: no tensor {name}"
        self._used.add(name)
        return self._io[name]

    def __contains__(self, name: str) -> bool:
        return name in self._io

    def optional(self, name: str) -> Tensor | None:
        if name not in self:
            return None
        return self[name]

    def suffixes(self, prefix: str) -> list[str]:
        """What follows `prefix` in the names of the tensors that begin with it."""
        return sorted(name.removeprefix(prefix) for name in self._io if name.startswith(prefix))

    def weights(self, prefix: str = "", *, file: str = "weights.safetensors") -> dict[str, Tensor]:
        """Weights whose key starts with `prefix`, without the prefix; bf16 on disk, fp32 here."""
        tensors = load_file(self.folder / file)
        return {
            key.removeprefix(prefix): tensor.float() if tensor.is_floating_point() else tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }

    def expect_equal(self, name: str, actual: Tensor, *, where: Tensor | None = None) -> None:
        """Compare with the output `name`, if the case holds it, or with those of its values where `where` is set."""
        if name in self:
            expected = self[name]
            if where is None:
                assert_equal(name, actual, expected)
            else:
                assert_equal_where(where, name, actual, expected)
            self._comparisons += 1

    def expect_close(self, name: str, actual: Tensor, *, relative: float = 1e-4) -> None:
        """Compare with the output `name`, if the case holds it."""
        if name in self:
            assert_close(name, actual, self[name], relative=relative)
            self._comparisons += 1

    def expect(self, condition: bool, message: object) -> None:
        """One comparison with what config.json expects."""
        assert condition, message
        self._comparisons += 1

    def ignore(self, *patterns: str) -> None:
        """Tensors that are there for information."""
        self._used |= {name for name in self._io if any(fnmatchcase(name, pattern) for pattern in patterns)}

    def finish(self) -> None:
        assert self._comparisons, f"{self.folder.name}: no output that a check compares"
        unknown = sorted(self._io.keys() - self._used)
        assert not unknown, f"{self.folder.name}: unknown tensors {', '.join(unknown)}"


def assert_equal(name: str, actual: Tensor, expected: Tensor) -> None:
    """For integers and bytes: the same shape and the same values."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    wrong = (actual != expected).sum().item()
    assert wrong == 0, f"{name}: {wrong} of {expected.numel()} values differ"


def assert_equal_where(mask: Tensor, name: str, actual: Tensor, expected: Tensor) -> None:
    """On [B, t, h, w] where mask is set, or on all channels there."""
    assert mask.float().mean() > 0.5, f"{name}: too few values to compare"
    if actual.dim() > mask.dim():
        mask = mask[:, None].expand_as(expected)
    assert_equal(name, actual.masked_select(mask), expected.masked_select(mask))


def assert_close(name: str, actual: Tensor, expected: Tensor, *, relative: float = 1e-4) -> None:
    """For floats: the largest deviation, relative to the largest expected magnitude."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    expected = expected.double()
    deviation = (actual.double() - expected).abs().max().item()
    scale = expected.abs().max().item()
    assert deviation <= relative * scale, f"{name}: deviation {deviation:.3g} > {relative} * {scale:.3g}"
