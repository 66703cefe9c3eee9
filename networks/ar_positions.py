"""Position tables of the autoregressive transformer: 3-D RoPE and absolute position embedding.

Video tokens fill a grid [T, H, W] in raster order. A video2world sequence has one begin-of-video token in front, at
row 0 of every table, with angle zero. Tables are padded with zero rows to a multiple of 64.

Legend: P positions (padded), D head dimension, C model width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TABLE_MULTIPLE = 64
ABSOLUTE_BASE = 10000.0


@dataclass(frozen=True, slots=True)
class Yarn:
    """Frequency interpolation by parts (YaRN, arXiv 2309.00071), without its attention temperature.

    `original_latent_shape` is the token grid before context extension. Its height is used for both spatial axes.
    """

    scale: float
    beta_fast: float
    beta_slow: float
    original_latent_shape: tuple[int, int, int]

    def stretch(self, frequencies: Tensor, original_length: int) -> Tensor:
        """Interpolated `frequencies` [K]: divided by `scale` up to `beta_slow` turns in `original_length`, unchanged
        from `beta_fast` turns on, and blended linearly in between."""
        fast = 2 * math.pi * self.beta_fast / original_length
        slow = 2 * math.pi * self.beta_slow / original_length
        keep = ((frequencies - slow) / (fast - slow)).clamp(0, 1)
        return frequencies * ((1 - keep) / self.scale + keep)


def split_axes(dim: int) -> tuple[int, int, int]:
    """Split `dim` channels into (t, h, w): h and w get a third each, rounded down to even."""
    spatial = dim // 6 * 2
    return dim - 2 * spatial, spatial, spatial


def grid_coordinates(latent_shape: tuple[int, int, int], *, leading_rows: int, rows: int) -> Tensor:
    """(t, h, w) of every position, [rows, 3] fp32; zero for the leading and the padding rows."""
    axes = [torch.arange(n, dtype=torch.float32, device="cpu") for n in latent_shape]
    grid = torch.cartesian_prod(*axes)  # [T*H*W, 3]
    coordinates = torch.zeros(rows, 3, device="cpu")
    coordinates[leading_rows : leading_rows + grid.shape[0]] = grid
    return coordinates


def rope_frequencies(head_dim: int, theta: float, yarn: Yarn | None) -> tuple[Tensor, Tensor]:
    """Angular frequencies of the temporal [D_t/2] and of each spatial axis [D_h/2], fp32."""
    temporal_dim, spatial_dim, _ = split_axes(head_dim)
    temporal, spatial = (
        1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
        for dim in (temporal_dim, spatial_dim)
    )
    if yarn is not None:
        frames, height, _ = yarn.original_latent_shape
        temporal, spatial = yarn.stretch(temporal, frames), yarn.stretch(spatial, height)
    return temporal, spatial


def rope_tables(coordinates: Tensor, head_dim: int, theta: float, yarn: Yarn | None) -> tuple[Tensor, Tensor]:
    """cos and sin for `coordinates` [P, 3], each [P, D] fp32, the half vector repeated twice (rotate-half)."""
    temporal, spatial = rope_frequencies(head_dim, theta, yarn)
    t, h, w = coordinates.unbind(-1)
    half = torch.cat([torch.outer(t, temporal), torch.outer(h, spatial), torch.outer(w, spatial)], dim=-1)
    angles = torch.cat([half, half], dim=-1)  # [P, D]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [..., D] by tables that broadcast to it."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([-x2, x1], dim=-1), sin)


def absolute_position_table(latent_shape: tuple[int, int, int], dim: int, *, leading_rows: int, rows: int) -> Tensor:
    """Sine and cosine embedding of (t, h, w), [rows, C]; leading and padding rows are zero.

    Always bf16, as in training of the released models: the rounding is part of the table.
    """
    frames, height, width = latent_shape
    parts = []
    for length, axis_dim in zip(latent_shape, split_axes(dim), strict=True):
        position = torch.arange(length, dtype=torch.float64, device="cpu")
        k = torch.arange(axis_dim // 2, dtype=torch.float64, device="cpu")
        angles = torch.outer(position, ABSOLUTE_BASE ** (-k / (axis_dim / 2)))
        parts.append(torch.cat([angles.sin(), angles.cos()], dim=-1).to(torch.bfloat16))  # [length, axis_dim]
    t, h, w = parts
    table = torch.zeros(rows, dim, dtype=torch.bfloat16, device="cpu")
    grid = table[leading_rows : leading_rows + frames * height * width].view(frames, height, width, dim)
    grid[..., : t.shape[1]] = t[:, None, None]
    grid[..., t.shape[1] : t.shape[1] + h.shape[1]] = h[:, None]
    grid[..., t.shape[1] + h.shape[1] :] = w
    return table
