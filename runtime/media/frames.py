"""Pixels on both sides of the networks: decoded frames to the tokenizer's input, decoder output to frames.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cosmos_triton.runtime.media.fit import Fit, Size


def to_model_input(frames: Tensor, target: Size) -> Tensor:
    """uint8 [T, H, W, 3] -> fp32 [3, T, *target] in [-1, 1]."""
    x = rearrange(frames, "t h w c -> t c h w").float() / 255 * 2 - 1
    return rearrange(fit(x, target), "t c h w -> c t h w")


def fit(x: Tensor, target: Size) -> Tensor:
    """[T, C, H, W] scaled (bilinear, antialiased) and cropped as `Fit.plan` says: [T, C, *target]."""
    plan = Fit.plan((x.shape[-2], x.shape[-1]), target)
    if plan.source != plan.resized:
        x = F.interpolate(x, size=plan.resized, mode="bilinear", align_corners=False, antialias=True)
    return x[:, :, plan.top : plan.top + target[0], plan.left : plan.left + target[1]]


def to_unit_range(video: Tensor) -> Tensor:
    """Decoder output around [-1, 1] -> [0, 1]."""
    return (0.5 * video + 0.5).clamp(0, 1)


def to_uint8(video: Tensor) -> Tensor:
    """[3, T, H, W] in [0, 1] -> uint8 [T, H, W, 3]; truncated, not rounded, as the released pipeline does."""
    return rearrange((video * 255).to(torch.uint8), "c t h w -> t h w c")
