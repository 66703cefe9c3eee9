"""Pixels on both sides of the networks: decoded frames to the tokenizer's input, decoder output to frames.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cosmos_triton.runtime.media.fit import SQUARE, Fit, Size


def to_model_input(frames: Tensor, target: Size, pixel_aspect: Fraction = SQUARE) -> Tensor:
    """uint8 [T, H, W, 3] -> fp32 [3, T, *target] in [-1, 1]."""
    # Frame by frame, in place: in fp32, a clip of large frames would take gigabytes.
    fitted = [fit(_to_signed_unit(frame[None]), target, pixel_aspect) for frame in frames]
    return rearrange(torch.cat(fitted), "t c h w -> c t h w")


def _to_signed_unit(frames: Tensor) -> Tensor:
    """uint8 [T, H, W, 3] -> fp32 [T, 3, H, W] in [-1, 1]."""
    return rearrange(frames, "t h w c -> t c h w").float().div_(255).mul_(2).sub_(1)


def fit(x: Tensor, target: Size, pixel_aspect: Fraction = SQUARE) -> Tensor:
    """[T, C, H, W] scaled (bilinear, antialiased) and cropped as `Fit.plan` says: [T, C, *target]."""
    plan = Fit.plan((x.shape[-2], x.shape[-1]), target, pixel_aspect)
    if plan.is_windowed:
        axes = [(-2, plan.resized[0], plan.top, target[0]), (-1, plan.resized[1], plan.left, target[1])]
        for dim, resized, start, count in sorted(axes, key=lambda axis: -axis[1] / axis[3]):  # what is cropped first
            x = _scaled_window(x, dim, resized, start, count)
        return x
    if plan.source != plan.resized:
        x = F.interpolate(x, size=plan.resized, mode="bilinear", align_corners=False, antialias=True)
    return x[:, :, plan.top : plan.top + target[0], plan.left : plan.left + target[1]]


def _scaled_window(x: Tensor, dim: int, resized: int, start: int, count: int) -> Tensor:
    """Positions `start` to `start + count` along `dim` of x scaled to `resized`, as F.interpolate computes them.

    Each is a weighted mean of the positions of x around it; the weights fall off linearly ("triangle filter").
    """
    length = x.shape[dim]
    scale = length / resized
    reach = max(scale, 1.0)
    centre = (torch.arange(start, start + count, dtype=torch.float64) + 0.5) * scale  # [count]
    first = (centre - reach + 0.5).floor().clamp(min=0)
    positions = first[:, None] + torch.arange(math.ceil(2 * reach) + 1)  # [count, taps]
    weights = (1 - (positions + 0.5 - centre[:, None]).abs() / reach).clamp(min=0) * (positions < length)
    weights = (weights / weights.sum(1, keepdim=True)).to(x)
    positions = positions.clamp(max=length - 1).long().to(x.device)
    shape = (-1, 1) if dim == -2 else (-1,)
    taps = zip(positions.unbind(1), weights.unbind(1), strict=True)
    return sum((x.index_select(dim, at) * weight.view(shape) for at, weight in taps), start=x.new_zeros(()))


def to_unit_range(video: Tensor) -> Tensor:
    """Decoder output around [-1, 1] -> [0, 1]."""
    return (0.5 * video + 0.5).clamp(0, 1)


def to_uint8(video: Tensor) -> Tensor:
    """[3, T, H, W] in [0, 1] -> uint8 [T, H, W, 3]; truncated, not rounded, as the released pipeline does."""
    return rearrange((video * 255).to(torch.uint8), "c t h w -> t h w c")
