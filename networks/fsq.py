"""Finite scalar quantisation (arXiv 2309.15505): each latent channel is rounded to one of a few levels.

Computed in fp32, whatever the dtype of the tokenizer.

Legend: B batch, C channels (one per entry of `levels`), T, H, W latent grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MARGIN = 1e-3  # widens the bounds, so that the outermost levels are reachable


@dataclass(frozen=True, slots=True)
class FSQ:
    """An implicit codebook: the grid of `levels[c]` values in channel c, with the first channel varying fastest."""

    levels: tuple[int, ...]

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    def bound(self, latents: Tensor) -> Tensor:
        """Squash latents [B, C, T, H, W] smoothly into the range of the levels, in units of one level."""
        levels = self._levels(latents).float()
        half_range = (levels - 1) * (1 + _MARGIN) / 2
        offset = 0.5 * (1 - levels % 2)  # an even number of levels has none at zero
        shift = (offset / half_range).atanh()
        return (latents.float() + shift).tanh() * half_range - offset

    def quantise(self, latents: Tensor) -> Tensor:
        """Codes of latents [B, C, T, H, W]: the nearest grid point, in [-1, 1], fp32."""
        return self.bound(latents).round() / self._half_width(latents)

    def indices(self, codes: Tensor) -> Tensor:
        """Codes [B, C, T, H, W] -> indices [B, T, H, W] int32. Codes may have been rounded to bf16."""
        half_width = self._half_width(codes)
        digits = (codes.float() * half_width).round().int() + half_width
        return (digits * self._basis(codes)).sum(dim=1, dtype=torch.int32)

    def codes(self, indices: Tensor) -> Tensor:
        """Indices [B, T, H, W] -> codes [B, C, T, H, W] fp32."""
        digits = indices[:, None] // self._basis(indices) % self._levels(indices)
        half_width = self._half_width(indices)
        return (digits - half_width) / half_width

    def _levels(self, like: Tensor) -> Tensor:  # [C, 1, 1, 1]
        return _column(self.levels, like)

    def _half_width(self, like: Tensor) -> Tensor:  # [C, 1, 1, 1]
        return _column([level // 2 for level in self.levels], like)

    def _basis(self, like: Tensor) -> Tensor:  # [C, 1, 1, 1]
        return _column([math.prod(self.levels[:channel]) for channel in range(len(self.levels))], like)


def _column(values: tuple[int, ...] | list[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=like.device).view(-1, 1, 1, 1)
