"""Split-KV attention over the KV cache for CUDA.

This is Flash-Decoding (Dao, Haziza, Massa, Sizov, 2023) with the online softmax of FlashAttention (arXiv 2205.14135),
for one query token per slot or a speculation window. The cache positions of a slot are cut into splits of fixed size,
one program per split, and the partial results are combined in order. The length of a slot is read on the device, so one
CUDA graph serves every length, an idle slot costs next to nothing, and a slot's result does not depend on its
neighbours' lengths.

Legend: S slots, K key/value heads, G query heads per key/value head, Q query tokens per slot, M = G * Q, D head
dimension, P cache positions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cosmos_triton.networks.kv_cache import AttentionMetadata, cache_attention
from cosmos_triton.runtime.ar.speculation import MAX_WINDOW

SPLIT = 256  # cache positions per program
BLOCK_N = 64  # cache positions per iteration


def split_kv_attention(q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata) -> Tensor:
    """As `kv_cache.cache_attention`. Up to MAX_WINDOW query tokens the mask is not read; longer queries use SDPA."""
    if q.shape[3] > MAX_WINDOW:
        return cache_attention(q, k, v, metadata)
    q, positions = q.contiguous(), metadata.positions
    slots, heads, groups, query_len, dim = q.shape
    m, splits = groups * query_len, triton.cdiv(k.shape[2], SPLIT)
    block_m = min(64, max(16, triton.next_power_of_2(m)))
    block_d = triton.next_power_of_2(dim)
    out = torch.empty_like(q)
    partial = torch.empty(slots * heads, splits, m, dim, device=q.device, dtype=torch.float32)
    row_max = torch.empty(slots * heads, splits, m, device=q.device, dtype=torch.float32)
    row_sum = torch.empty_like(row_max)
    _attend_split[(slots * heads, splits, triton.cdiv(m, block_m))](
        q, k, v, positions, partial, row_max, row_sum,
        k.stride(0), k.stride(1), positions.stride(0), heads, query_len, m, splits, dim**-0.5,
        DIM=dim, BLOCK_D=block_d, BLOCK_M=block_m, BLOCK_N=BLOCK_N, SPLIT=SPLIT,
    )  # fmt: skip
    _combine_splits[(slots * heads, m)](
        partial, row_max, row_sum, positions, out, positions.stride(0), heads, query_len, m, splits,
        DIM=dim, BLOCK_D=block_d, BLOCK_S=triton.next_power_of_2(splits), SPLIT=SPLIT,
    )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _attend_split(
    q_ptr, k_ptr, v_ptr, positions_ptr, partial_ptr, row_max_ptr, row_sum_ptr,
    stride_slot, stride_head, stride_positions, heads, query_len, m, splits, scale,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Online-softmax attention of up to BLOCK_M queries over one split: unnormalised output, row maximum, row sum."""
    sequence, split, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)  # sequence: a (slot, KV head) pair
    slot, head = sequence // heads, sequence % heads
    start = tl.load(positions_ptr + slot * stride_positions)
    end = tl.minimum(start + query_len, (split + 1) * SPLIT)
    if split * SPLIT >= end:
        return
    d = tl.arange(0, BLOCK_D)
    query = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    position = start + query % query_len
    in_dim, in_m = d < DIM, query < m
    q = tl.load(q_ptr + (sequence * m + query[:, None]) * DIM + d, mask=in_m[:, None] & in_dim, other=0.0)
    k_base = k_ptr + slot * stride_slot + head * stride_head
    v_base = v_ptr + slot * stride_slot + head * stride_head
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(split * SPLIT, end, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        kv_mask = (n < end)[:, None] & in_dim
        k = tl.load(k_base + n[:, None] * DIM + d, mask=kv_mask, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(n[None, :] <= position[:, None], score, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(score, 1))
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)  # a query may see no position of this split
        p = tl.exp(score - shift[:, None])
        rescale = tl.exp(row_max - shift)
        v = tl.load(v_base + n[:, None] * DIM + d, mask=kv_mask, other=0.0)
        acc = acc * rescale[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        row_sum = row_sum * rescale + tl.sum(p, 1)
        row_max = new_max
    offset = (sequence * splits + split) * m + query
    tl.store(partial_ptr + offset[:, None] * DIM + d, acc, mask=in_m[:, None] & in_dim)
    tl.store(row_max_ptr + offset, row_max, mask=in_m)
    tl.store(row_sum_ptr + offset, row_sum, mask=in_m)


@triton.jit  # type: ignore[untyped-decorator]
def _combine_splits(
    partial_ptr, row_max_ptr, row_sum_ptr, positions_ptr, out_ptr, stride_positions, heads, query_len, m, splits,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Rescale and add up the splits of one query, and normalise."""
    sequence, query = tl.program_id(0), tl.program_id(1)
    end = tl.load(positions_ptr + sequence // heads * stride_positions) + query_len
    split, d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    used = split * SPLIT < end
    offset = (sequence * splits + split) * m + query
    row_max = tl.load(row_max_ptr + offset, mask=used, other=float("-inf"))
    row_sum = tl.load(row_sum_ptr + offset, mask=used, other=0.0)
    weight = tl.exp(row_max - tl.max(row_max, 0))
    mask = used[:, None] & (d < DIM)
    acc = tl.load(partial_ptr + offset[:, None] * DIM + d, mask=mask, other=0.0)
    out = tl.sum(acc * weight[:, None], 0) / tl.sum(row_sum * weight, 0)
    tl.store(out_ptr + (sequence * m + query) * DIM + d, out.to(out_ptr.dtype.element_ty), mask=d < DIM)
