"""Attention on the KV cache for CUDA: each slot reads exactly the rows it has.

The rows of a slot are cut into splits of fixed size, one program a split, and the splits' results are joined in order.
Where a slot's rows end is read on the device, so one CUDA graph serves every length, an idle slot costs next to
nothing, and a slot's result does not depend on its neighbours' lengths.

Legend: S slots, K key/value heads, G query heads for each, W window, M = G * W, D head dimension, P cache rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cosmos_triton.networks.kv_cache import Window, attend_to_cache
from cosmos_triton.runtime.ar.window_policy import MAX_WINDOW

SPLIT = 256  # cache rows for one program
BLOCK_N = 64  # of them at a time


def attend_to_cache_cuda(q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
    """As `cosmos_triton.networks.kv_cache.attend_to_cache`; for windows up to MAX_WINDOW, the mask is not read."""
    if q.shape[3] > MAX_WINDOW:
        return attend_to_cache(q, k, v, window)
    q, rows = q.contiguous(), window.rows
    slots, heads, groups, width, dim = q.shape
    m, splits = groups * width, triton.cdiv(k.shape[2], SPLIT)
    block_m = min(64, max(16, triton.next_power_of_2(m)))
    block_d = triton.next_power_of_2(dim)
    out = torch.empty_like(q)
    partial = torch.empty(slots * heads, splits, m, dim, device=q.device, dtype=torch.float32)
    peak = torch.empty(slots * heads, splits, m, device=q.device, dtype=torch.float32)
    total = torch.empty_like(peak)
    _attend_split[(slots * heads, splits, triton.cdiv(m, block_m))](
        q, k, v, rows, partial, peak, total,
        k.stride(0), k.stride(1), rows.stride(0), heads, width, m, splits, dim**-0.5,
        DIM=dim, BLOCK_D=block_d, BLOCK_M=block_m, BLOCK_N=BLOCK_N, SPLIT=SPLIT,
    )  # fmt: skip
    _join_splits[(slots * heads, m)](
        partial, peak, total, rows, out, rows.stride(0), heads, width, m, splits,
        DIM=dim, BLOCK_D=block_d, BLOCK_S=triton.next_power_of_2(splits), SPLIT=SPLIT,
    )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _attend_split(
    q_ptr, k_ptr, v_ptr, rows_ptr, partial_ptr, peak_ptr, total_ptr,
    stride_slot, stride_head, stride_rows, heads, width, m, splits, scale,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One split's share of the attention of up to BLOCK_M queries: weighted values, their weight, and its exponent."""
    sequence, split, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot, head = sequence // heads, sequence % heads
    start = tl.load(rows_ptr + slot * stride_rows)
    end = tl.minimum(start + width, (split + 1) * SPLIT)
    if split * SPLIT >= end:
        return
    d = tl.arange(0, BLOCK_D)
    query = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row = start + query % width
    in_dim, in_m = d < DIM, query < m
    q = tl.load(q_ptr + (sequence * m + query[:, None]) * DIM + d, mask=in_m[:, None] & in_dim, other=0.0)
    k_base = k_ptr + slot * stride_slot + head * stride_head
    v_base = v_ptr + slot * stride_slot + head * stride_head
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    values = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(split * SPLIT, end, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        here = (n < end)[:, None] & in_dim
        k = tl.load(k_base + n[:, None] * DIM + d, mask=here, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(n[None, :] <= row[:, None], score, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(score, 1))
        origin = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # a query may see nothing of this split
        weight = tl.exp(score - origin[:, None])
        fade = tl.exp(peak - origin)
        v = tl.load(v_base + n[:, None] * DIM + d, mask=here, other=0.0)
        values = values * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        total = total * fade + tl.sum(weight, 1)
        peak = new_peak
    place = (sequence * splits + split) * m + query
    tl.store(partial_ptr + place[:, None] * DIM + d, values, mask=in_m[:, None] & in_dim)
    tl.store(peak_ptr + place, peak, mask=in_m)
    tl.store(total_ptr + place, total, mask=in_m)


@triton.jit  # type: ignore[untyped-decorator]
def _join_splits(
    partial_ptr, peak_ptr, total_ptr, rows_ptr, out_ptr, stride_rows, heads, width, m, splits,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Weighted mean of one query's splits."""
    sequence, query = tl.program_id(0), tl.program_id(1)
    end = tl.load(rows_ptr + sequence // heads * stride_rows) + width
    split, d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    used = split * SPLIT < end
    place = (sequence * splits + split) * m + query
    peak = tl.load(peak_ptr + place, mask=used, other=float("-inf"))
    total = tl.load(total_ptr + place, mask=used, other=0.0)
    weight = tl.exp(peak - tl.max(peak, 0))
    mask = used[:, None] & (d < DIM)
    values = tl.load(partial_ptr + place[:, None] * DIM + d, mask=mask, other=0.0)
    out = tl.sum(values * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(out_ptr + (sequence * m + query) * DIM + d, out.to(out_ptr.dtype.element_ty), mask=d < DIM)
