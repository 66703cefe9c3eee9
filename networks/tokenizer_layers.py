"""Layers of the causal video tokenizers: no frame sees a later one.

Before the first frame stands the first frame, repeated. Convolutions are factorised: a spatial (1, 3, 3) one, then a
temporal (3, 1, 1) one.

Legend: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

NORM_EPS = 1e-6
QUERIES = 1024  # pixels of a frame that attend at a time: no fused kernel takes heads as wide, and scores are large


def repeat_first_frame(x: Tensor, times: int) -> Tensor:
    """[B, C, T, H, W] -> [B, C, times + T, H, W], in x's memory format."""
    return torch.cat([x[:, :, :1]] * times + [x], dim=2)


class CausalConv(nn.Module):
    """Convolution over [time, space, space]; a strided one expects its spatial padding in the input."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time: int = 1,
        space: int = 1,
        time_stride: int = 1,
        space_stride: int = 1,
    ) -> None:
        super().__init__()
        self.leading_frames = time - time_stride
        spatial_padding = space // 2 if space_stride == 1 else 0
        self.conv3d = nn.Conv3d(
            in_channels,
            out_channels,
            kernel_size=(time, space, space),
            stride=(time_stride, space_stride, space_stride),
            padding=(0, spatial_padding, spatial_padding),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.leading_frames:
            x = repeat_first_frame(x, self.leading_frames)
        if not x.is_cpu:
            # In this format a GPU's convolutions need no workspace. In the other they do, and where there is no room,
            # others are taken that round differently: a clip's tokens would depend on how much memory is free.
            x = x.contiguous(memory_format=torch.channels_last_3d)
        return self.conv3d(x)


def factorized_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        CausalConv(in_channels, out_channels, space=3),
        CausalConv(out_channels, out_channels, time=3),
    )


class FrameNorm(nn.Module):
    """Group norm with one group, over each frame by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups=1, num_channels=channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.norm(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])


class ResBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = FrameNorm(in_channels)
        self.conv1 = factorized_conv(in_channels, out_channels)
        self.norm2 = FrameNorm(out_channels)
        self.conv2 = factorized_conv(out_channels, out_channels)
        self.nin_shortcut = CausalConv(in_channels, out_channels) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


def residual_blocks(in_channels: int, out_channels: int, count: int) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * count
    return nn.Sequential(*(ResBlock(a, b) for a, b in pairwise(widths)))


class Attention(nn.Module):
    """Residual single-head attention: a pixel sees its frame, or, over time, itself in this and earlier frames."""

    def __init__(self, channels: int, *, over_time: bool) -> None:
        super().__init__()
        self.is_causal = over_time
        self.rows = "(b h w) 1 t c" if over_time else "(b t) 1 (h w) c"
        self.norm = FrameNorm(channels)
        self.q = CausalConv(channels, channels)
        self.k = CausalConv(channels, channels)
        self.v = CausalConv(channels, channels)
        self.proj_out = CausalConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        _, _, t, h, w = x.shape
        normed = self.norm(x)
        # Four dimensions, though there is one head: only then do the fused kernels take it.
        q, k, v = (rearrange(f(normed), f"b c t h w -> {self.rows}") for f in (self.q, self.k, self.v))
        if self.is_causal:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # each query by itself: exact, whatever is computed together
            parts = [F.scaled_dot_product_attention(part, k, v) for part in q.split(QUERIES, dim=2)]
            out = torch.cat(parts, dim=2)
        return x + self.proj_out(rearrange(out, f"{self.rows} -> b c t h w", t=t, h=h, w=w))


def middle(channels: int) -> nn.Sequential:
    """The bottleneck that encoder and decoder share."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        block_1=ResBlock(channels, channels),
        attn_1=nn.Sequential(Attention(channels, over_time=False), Attention(channels, over_time=True)),
        block_2=ResBlock(channels, channels),
    )
    return nn.Sequential(layers)


@dataclass(frozen=True, slots=True)
class Resampling:
    """Which axes change their length by 2 behind a level."""

    time: bool
    space: bool

    def __bool__(self) -> bool:
        return self.time or self.space


class Downsample(nn.Module):
    """Halve height and width, then the frames (T odd -> (T + 1) / 2): strided convolution plus average pooling."""

    def __init__(self, channels: int, resampling: Resampling) -> None:
        super().__init__()
        self.resampling = resampling
        if resampling.space:
            self.conv1 = CausalConv(channels, channels, space=3, space_stride=2)
        if resampling.time:
            self.conv2 = CausalConv(channels, channels, time=3, time_stride=2)
        self.conv3 = CausalConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.resampling.space:
            x = self.conv1(F.pad(x, (0, 1, 0, 1))) + reduce(x, "b c t (h 2) (w 2) -> b c t h w", "mean")
        if self.resampling.time:
            x = repeat_first_frame(x, 1)
            x = self.conv2(x) + reduce(x, "b c (t 2) h w -> b c t h w", "mean")
        return self.conv3(x)


class Upsample(nn.Module):
    """Double the frames (T -> 2 T - 1), then height and width: repetition plus a convolution of it."""

    def __init__(self, channels: int, resampling: Resampling) -> None:
        super().__init__()
        self.resampling = resampling
        if resampling.time:
            self.conv1 = CausalConv(channels, channels, time=3)
        if resampling.space:
            self.conv2 = CausalConv(channels, channels, space=3)
        self.conv3 = CausalConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.resampling.time:
            x = F.interpolate(x, scale_factor=(2, 1, 1))[:, :, 1:]
            x = x + self.conv1(x)
        if self.resampling.space:
            x = F.interpolate(x, scale_factor=(1, 2, 2))
            x = x + self.conv2(x)
        return self.conv3(x)
