"""Group norm over whole frames, for video whose channels lie innermost.

torch gives each frame's statistics to one program, so a clip of 36 frames keeps 36 of a GPU's multiprocessors at work.
Here each program takes a piece of a frame, and the pieces' moments are joined in an order that never changes. The
activation and the frames that a causal convolution wants in front are written in the same pass.

Legend: B batch, C channels, T frames, H height, W width, L leading frames.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

PIECE = 8192  # elements that a program reduces, or writes
WARPS = 8


def frame_norm(x: Tensor, norm: nn.GroupNorm, *, silu: bool = False, lead: int = 0) -> Tensor:
    """As `norm` of each frame, with one group, then SiLU, behind `lead` copies of the first frame.

    Args:
        x: [B, C, T, H, W].

    Returns:
        [B, C, L + T, H, W] in channels_last_3d.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    batch, channels, frames, height, width = x.shape
    pixels = height * width
    size = pixels * channels
    pieces = triton.cdiv(size, PIECE)
    partial = x.new_empty(2, batch * frames, pieces, dtype=torch.float32)  # mean, and squared distance from it
    moments = x.new_empty(2, batch * frames, dtype=torch.float32)  # mean, 1 / standard deviation
    shape = (batch, channels, lead + frames, height, width)
    out = torch.empty(shape, device=x.device, dtype=x.dtype, memory_format=torch.channels_last_3d)
    block = triton.next_power_of_2(channels)
    rows = max(PIECE // block, 1)
    if not x.is_meta:
        _piece_moments[(pieces, batch * frames)](x, partial[0], partial[1], size, PIECE=PIECE, num_warps=WARPS)
        _frame_moments[(batch * frames,)](
            partial[0], partial[1], moments[0], moments[1], size, pieces, norm.eps,
            PIECE=PIECE, BLOCK=triton.next_power_of_2(pieces), num_warps=4,
        )  # fmt: skip
        _normalise[(triton.cdiv(pixels, rows), batch * frames)](
            x, norm.weight, norm.bias, moments[0], moments[1], out, frames, pixels,
            C=channels, LEAD=lead, SILU=silu, BLOCK_C=block, ROWS=rows, num_warps=WARPS,
        )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _piece_moments(x_ptr, mean_ptr, distance_ptr, size, PIECE: tl.constexpr):
    piece, frame = tl.program_id(0), tl.program_id(1)
    i = piece * PIECE + tl.arange(0, PIECE)
    x = tl.load(x_ptr + frame.to(tl.int64) * size + i, mask=i < size, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / tl.minimum(size - piece * PIECE, PIECE)
    centred = tl.where(i < size, x - mean, 0.0)
    at = frame * tl.num_programs(0) + piece
    tl.store(mean_ptr + at, mean)
    tl.store(distance_ptr + at, tl.sum(centred * centred, 0))


@triton.jit  # type: ignore[untyped-decorator]
def _frame_moments(
    mean_ptr, distance_ptr, frame_mean_ptr, frame_factor_ptr, size, pieces, eps,
    PIECE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    frame, i = tl.program_id(0), tl.arange(0, BLOCK)
    there = i < pieces
    means = tl.load(mean_ptr + frame * pieces + i, mask=there, other=0.0)
    distances = tl.load(distance_ptr + frame * pieces + i, mask=there, other=0.0)
    counts = tl.where(there, tl.minimum(size - i * PIECE, PIECE), 0).to(tl.float32)
    mean = tl.sum(means * counts, 0) / size
    centred = means - mean
    variance = (tl.sum(distances, 0) + tl.sum(counts * centred * centred, 0)) / size
    tl.store(frame_mean_ptr + frame, mean)
    tl.store(frame_factor_ptr + frame, tl.rsqrt(variance + eps))


@triton.jit  # type: ignore[untyped-decorator]
def _normalise(
    x_ptr, weight_ptr, bias_ptr, mean_ptr, factor_ptr, out_ptr, frames, pixels,
    C: tl.constexpr, LEAD: tl.constexpr, SILU: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(1)
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, BLOCK_C)[None, :]
    in_c = c < C
    here = in_c & (pixel < pixels)
    at = pixel * C + c
    factor = tl.load(weight_ptr + c, mask=in_c, other=0.0).to(tl.float32) * tl.load(factor_ptr + frame)
    bias = tl.load(bias_ptr + c, mask=in_c, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + frame.to(tl.int64) * pixels * C + at, mask=here, other=0.0).to(tl.float32)
    y = (x - tl.load(mean_ptr + frame)) * factor + bias
    if SILU:
        y = y * tl.sigmoid(y)
    y = y.to(out_ptr.dtype.element_ty)
    clip, number = frame // frames, frame % frames
    target = (clip * (frames + LEAD) + number + LEAD).to(tl.int64) * pixels * C
    tl.store(out_ptr + target + at, y, mask=here)
    if number == 0:
        for i in range(LEAD):
            tl.store(out_ptr + target - (i + 1) * pixels * C + at, y, mask=here)
