"""Fused elementwise kernels of the diffusion transformer: what lies between its products and its attention.

A block of the plain module passes over the activations some twenty times; these kernels make it seven. Each computes in
fp32 and rounds once. With fp8 products the kernel before a product also quantises its input, row by row, so that
quantisation costs no pass of its own: x ~ data * scale, the largest element of a row at the end of the range of e4m3.

Legend: B batch, N tokens, C model width, A heads, D head dimension, K width of a product's input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
ROWS = 4  # of the norm, a program: the modulation is read once for all of them


@dataclass(frozen=True, slots=True)
class Quantised:
    """Rows in fp8, each with its scale."""

    data: Tensor  # [..., K] e4m3
    scale: Tensor  # [...] fp32

    @classmethod
    def like(cls, x: Tensor) -> Quantised:
        """Not initialised, of the shape of x."""
        scale = x.new_empty(x.shape[:-1], dtype=torch.float32)
        return cls(x.new_empty(x.shape, dtype=FP8), scale)

    def samples(self, part: slice) -> Quantised:
        return Quantised(self.data[part], self.scale[part])


def residual_norm(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    out: Tensor | Quantised,
    *,
    eps: float,
) -> None:
    """x += gate * y in place, then out = layer_norm(x) * (1 + scale) + shift.

    Args:
        x: [B, N, C], contiguous, as are y and out; where y is None, x stays as it is.
        gate, shift, scale: [B, 1, C]; their samples may lie apart.
    """
    batch, n, c = x.shape
    data, row_scale = (out.data, out.scale) if isinstance(out, Quantised) else (out, out)
    y, gate = (x, shift) if y is None or gate is None else (y, gate)
    added = y is not x
    _launch(
        _residual_norm, (triton.cdiv(n, ROWS), batch),
        x, y, gate, shift, scale, data, row_scale, n, gate.stride(0), shift.stride(0), eps,
        C=c, BLOCK=triton.next_power_of_2(c), ROWS=ROWS, ADDED=added, QUANTISED=isinstance(out, Quantised),
        num_warps=_warps(c),
    )  # fmt: skip


def norm_heads(
    x: Tensor, weights: tuple[Tensor, ...], tables: tuple[Tensor, Tensor] | None, *, heads: int, eps: float
) -> None:
    """RMS norm of each head, then rotary embedding, in place.

    Args:
        x: [B, N, P, A * D], contiguous: P projections side by side, of which the first `len(weights)`, one or two, are
            changed.
        weights: of the norm, [D] each.
        tables: cosine and sine of every token, [N, D / 2] fp32; without them there is no rotation.
    """
    _launch_norm_heads(x, x, x, weights, tables, parts=len(weights), heads=heads, eps=eps)


def quantise_heads(
    qkv: Tensor,
    weights: tuple[Tensor, Tensor],
    tables: tuple[Tensor, Tensor],
    scales: Tensor,
    *,
    heads: int,
    eps: float,
) -> Tensor:
    """As `norm_heads` of queries and keys, and with the values as they are, in e4m3: [B, N, 3, A * D].

    Args:
        scales: [3] fp32, by which queries, keys and values are multiplied.
    """
    out = qkv.new_empty(qkv.shape, dtype=FP8)
    _launch_norm_heads(qkv, out, scales, weights, tables, parts=3, heads=heads, eps=eps)
    return out


def _launch_norm_heads(
    x: Tensor,
    out: Tensor,
    scales: Tensor,
    weights: tuple[Tensor, ...],
    tables: tuple[Tensor, Tensor] | None,
    *,
    parts: int,
    heads: int,
    eps: float,
) -> None:
    batch, n, _, width = x.shape
    half = width // heads // 2
    cos, sin = tables or (x, x)
    _launch(
        _norm_heads, (batch * n, parts),
        x, out, scales, weights[0], weights[-1], cos, sin, n, x.stride(1), eps,
        HEADS=heads, HALF=half, BLOCK_H=triton.next_power_of_2(heads), BLOCK_D=triton.next_power_of_2(half),
        ROTATED=tables is not None, QUANTISED=out is not x, num_warps=_warps(width),
    )  # fmt: skip


def quantise_rows(x: Tensor, *, gelu: bool = False) -> Quantised:
    """x [..., K], contiguous, or the GELU of it."""
    out = Quantised.like(x)
    k = x.shape[-1]
    _launch(
        _quantise_rows, (x.shape[:-1].numel(),), x, out.data, out.scale,
        K=k, BLOCK=triton.next_power_of_2(k), GELU=gelu, num_warps=_warps(k),
    )  # fmt: skip
    return out


def _warps(width: int) -> int:
    """Some 32 elements a thread."""
    return min(max(triton.next_power_of_2(width) // 1024, 1), 16)


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    if not args[0].is_meta:  # shapes alone: memory is counted
        kernel[grid](*args, **constants)


@triton.jit  # type: ignore[untyped-decorator]
def _residual_norm(
    x_ptr, y_ptr, gate_ptr, shift_ptr, scale_ptr, out_ptr, row_scale_ptr, n, gate_stride, shift_stride, eps,
    C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ADDED: tl.constexpr, QUANTISED: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1)
    c = tl.arange(0, BLOCK)
    in_c = c < C
    shift = tl.load(shift_ptr + sample * shift_stride + c, mask=in_c, other=0.0).to(tl.float32)
    factor = 1.0 + tl.load(scale_ptr + sample * shift_stride + c, mask=in_c, other=0.0).to(tl.float32)
    if ADDED:
        gate = tl.load(gate_ptr + sample * gate_stride + c, mask=in_c, other=0.0).to(tl.float32)
    for i in range(ROWS):
        token = tl.program_id(0) * ROWS + i
        row = sample.to(tl.int64) * n + token
        here = in_c & (token < n)
        x = tl.load(x_ptr + row * C + c, mask=here, other=0.0)
        if ADDED:
            y = tl.load(y_ptr + row * C + c, mask=here, other=0.0).to(tl.float32)
            x = (x.to(tl.float32) + gate * y).to(x_ptr.dtype.element_ty)
            tl.store(x_ptr + row * C + c, x, mask=here)
        x32 = x.to(tl.float32)
        centred = tl.where(in_c, x32 - tl.sum(x32, 0) / C, 0.0)
        normed = centred * tl.rsqrt(tl.sum(centred * centred, 0) / C + eps)
        out = normed * factor + shift
        if QUANTISED:
            _store_quantised(out, out_ptr + row * C + c, row_scale_ptr + row, here, token < n)
        else:
            tl.store(out_ptr + row * C + c, out.to(out_ptr.dtype.element_ty), mask=here)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_heads(
    x_ptr, out_ptr, scales_ptr, first_ptr, second_ptr, cos_ptr, sin_ptr, n, row_stride, eps,
    HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, ROTATED: tl.constexpr,
    QUANTISED: tl.constexpr,
):  # fmt: skip
    """All heads of one token and projection; the third one is left as it is."""
    row, part = tl.program_id(0), tl.program_id(1)
    head, d = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_D)[None, :]
    in_d = d < HALF
    here = (head < HEADS) & in_d
    weight_ptr = first_ptr
    if part == 1:
        weight_ptr = second_ptr
    at = row.to(tl.int64) * row_stride + (part * HEADS + head) * 2 * HALF + d
    low = tl.load(x_ptr + at, mask=here, other=0.0).to(tl.float32)
    high = tl.load(x_ptr + at + HALF, mask=here, other=0.0).to(tl.float32)
    if part < 2:
        factor = tl.rsqrt(tl.sum(low * low + high * high, 1) / (2 * HALF) + eps)[:, None]
        low = low * factor * tl.load(weight_ptr + d, mask=in_d, other=0.0).to(tl.float32)
        high = high * factor * tl.load(weight_ptr + HALF + d, mask=in_d, other=0.0).to(tl.float32)
        if ROTATED:
            cos = tl.load(cos_ptr + (row % n) * HALF + d, mask=in_d, other=0.0)
            sin = tl.load(sin_ptr + (row % n) * HALF + d, mask=in_d, other=0.0)
            turned = low * cos - high * sin
            high = high * cos + low * sin
            low = turned
    if QUANTISED:
        scale = tl.load(scales_ptr + part)
        low, high = low * scale, high * scale
    tl.store(out_ptr + at, low.to(out_ptr.dtype.element_ty), mask=here)
    tl.store(out_ptr + at + HALF, high.to(out_ptr.dtype.element_ty), mask=here)


@triton.jit  # type: ignore[untyped-decorator]
def _quantise_rows(x_ptr, out_ptr, row_scale_ptr, K: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    in_k = k < K
    x = tl.load(x_ptr + row * K + k, mask=in_k, other=0.0).to(tl.float32)
    if GELU:
        x = _gelu(x)
    _store_quantised(x, out_ptr + row * K + k, row_scale_ptr + row, in_k, True)


@triton.jit
def _gelu(x):
    """The exact one. The tail of the normal distribution is within 1e-7, by formula 7.1.26 of Abramowitz and Stegun's
    Handbook of Mathematical Functions; the library's erf takes longer than the bytes."""
    z = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * z)
    series = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    tail = x * 0.5 * t * series * tl.exp(-z * z)
    return tl.where(x < 0, tail, x - tail)


@triton.jit
def _store_quantised(x, at, scale_at, mask, in_rows):
    peak = tl.maximum(tl.max(tl.where(mask, tl.abs(x), 0.0), 0), 1e-12)
    tl.store(scale_at, peak / 448.0, mask=in_rows)
    tl.store(at, (x * (448.0 / peak)).to(at.dtype.element_ty), mask=mask)
