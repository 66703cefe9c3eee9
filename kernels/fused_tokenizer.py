"""The video tokenizers as they run on a GPU: the plain modules' weights, with fewer passes over the pixels.

- Norms, with the activation behind them, are kernels that use the whole GPU (`frame_norm`).
- The frames in front of a causal convolution in time are there before the spatial convolution in front of it, which
  treats each frame by itself; so nothing is copied to put them there.
- Pixels are doubled with their channels innermost, as convolutions want them.

Legend: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from typing import TypeVar, cast

from torch import Tensor, nn

from cosmos_triton.kernels.frame_norm import frame_norm
from cosmos_triton.networks.tokenizer_layers import CausalConv, FrameNorm, ResBlock, Upsample

Network = TypeVar("Network", bound=nn.Module)


class FusedFrameNorm(nn.Module):
    def __init__(self, plain: FrameNorm) -> None:
        super().__init__()
        self.norm = plain.norm

    def forward(self, x: Tensor) -> Tensor:
        return frame_norm(x, self.norm)


class FusedResBlock(nn.Module):
    def __init__(self, plain: ResBlock) -> None:
        super().__init__()
        self.norm1, self.conv1 = plain.norm1, plain.conv1
        self.norm2, self.conv2 = plain.norm2, plain.conv2
        self.nin_shortcut = plain.nin_shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.nin_shortcut(x) + _norm_and_conv(_norm_and_conv(x, self.norm1, self.conv1), self.norm2, self.conv2)


def _norm_and_conv(x: Tensor, norm: FrameNorm, conv: nn.Sequential) -> Tensor:
    in_space, in_time = (cast(CausalConv, part) for part in conv)
    return in_time.conv3d(in_space(frame_norm(x, norm.norm, silu=True, lead=in_time.leading_frames)))


class FusedUpsample(nn.Module):
    def __init__(self, plain: Upsample) -> None:
        super().__init__()
        self.resampling = plain.resampling
        for name, part in plain.named_children():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        if self.resampling.time:
            conv = cast(CausalConv, self.conv1)
            led = _double_frames(x, conv.leading_frames)
            x = led[:, :, conv.leading_frames :] + conv.conv3d(led)
        if self.resampling.space:
            x = _double_pixels(x)
            x = x + cast(CausalConv, self.conv2)(x)
        return cast(CausalConv, self.conv3)(x)


def _double_frames(x: Tensor, lead: int) -> Tensor:
    """Frames 0, 1, 1, 2, 2, ... behind `lead` >= 1 copies of frame 0: [B, C, lead + 2 T - 1, H, W]."""
    x = x.permute(0, 2, 3, 4, 1)  # [B, T, H, W, C]
    batch, frames, *shape = x.shape
    out = x.new_empty(batch, lead - 1 + 2 * frames, *shape)
    out[:, : lead - 1] = x[:, :1]
    out[:, lead - 1 :].unflatten(1, (frames, 2)).copy_(x[:, :, None])
    return out.permute(0, 4, 1, 2, 3)


def _double_pixels(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, C, T, 2 H, 2 W]"""
    x = x.permute(0, 2, 3, 4, 1)
    doubled = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2, -1)
    return doubled.flatten(2, 3).flatten(3, 4).permute(0, 4, 1, 2, 3)


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    ResBlock: FusedResBlock,
    Upsample: FusedUpsample,
    FrameNorm: FusedFrameNorm,
}


def fuse_tokenizer(network: Network) -> Network:
    """Replace the parts of an encoder or decoder that have a fused form; they share their weights."""
    for name, child in network.named_children():
        if form := FUSED.get(type(child)):
            setattr(network, name, form(child))
        else:
            fuse_tokenizer(child)
    return network
