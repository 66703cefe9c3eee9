"""The transformer layer for CUDA where it is memory-bound: M = slots * query tokens of at most MAX_M.

A decode step then takes as long as reading the weights and the KV cache, plus kernel launches. So each weight is read
once at full bandwidth, and what is between two GEMMs is fused into their epilogues or one kernel: nine kernels a layer.

A row's result does not depend on the other rows.

Legend: S slots, Q query tokens per slot, M = S * Q, N outputs, K inputs, H query heads, J key/value heads, G = H / J,
D head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from cosmos_triton.networks.ar_transformer import ARTransformer, Attention, Layer, RMSNorm, merge_heads
from cosmos_triton.networks.int8 import Int8Linear
from cosmos_triton.networks.kv_cache import AttentionMetadata, CacheAttention, LayerCache

MAX_M = 128  # from about 200 rows on a GEMM is compute-bound, and cuBLAS is faster
GEMV_BLOCK_N, GEMV_BLOCK_K = 1, 2048  # the fastest of eight tiles on an H200
MIN_PROGRAMS = 192  # more than the multiprocessors of current GPUs
NUM_STAGES, STAGE_BYTES = 4, 24 * 1024  # fit the smallest shared memory, 99 KB per program


def layer_forward(
    layer: Layer, x: Tensor, metadata: AttentionMetadata, cache: LayerCache, attention: CacheAttention
) -> Tensor:
    """As `Layer.forward_native`, to which it leaves more than MAX_M rows."""
    if x.shape[:-1].numel() > MAX_M:
        return layer.forward_native(x, metadata, cache, attention)
    feed_forward = layer.feed_forward
    if metadata.abs_pos_emb is not None:
        x = x + metadata.abs_pos_emb
    q = _project_qkv(layer.attention, _rms_norm(x, layer.attention_norm), metadata, cache)
    x = linear(merge_heads(attention(q, cache.k, cache.v, metadata)), layer.attention.wo, residual=x)
    if cache.cross_k is not None and cache.cross_v is not None:
        cross = layer.cross_attention
        q = linear(_rms_norm(x, layer.cross_attention_norm), cross.wq)
        q = cross.group_heads(_rms_norm(cross.split_heads(q), cross.q_norm))
        out = F.scaled_dot_product_attention(q.flatten(2, 3), cache.cross_k, cache.cross_v)
        x = linear(merge_heads(out.unflatten(2, q.shape[2:4])), cross.wo, residual=x)
    hidden = linear(_rms_norm(x, layer.ffn_norm), feed_forward.w1, up=feed_forward.w3)
    return linear(hidden, feed_forward.w2, residual=x)


def logits(network: ARTransformer, hidden: Tensor) -> Tensor:
    """As `native_logits`. An 8-bit output projection is computed in pieces of MAX_M rows: dequantised at once, it would
    take half a GB."""
    m, vocab = hidden.shape[:-1].numel(), network.config.vocab_size
    if m > MAX_M and not isinstance(network.output, Int8Linear):
        return network.output(network.norm(hidden))
    out = hidden.new_empty(1, m, vocab)
    normed = _rms_norm(hidden, network.norm).view(1, m, -1)
    for part, out_part in zip(normed.split(MAX_M, dim=1), out.split(MAX_M, dim=1), strict=True):
        linear(part, network.output, out=out_part)
    return out.view(*hidden.shape[:-1], vocab)


def _rms_norm(x: Tensor, norm: RMSNorm) -> Tensor:
    """As `norm(x)`, x [..., K]."""
    x, k = x.contiguous(), x.shape[-1]
    out = torch.empty_like(x)
    grid, block = (x.shape[:-1].numel(),), triton.next_power_of_2(k)
    _rms_norm_kernel[grid](x, norm.weight, out, norm.eps, K=k, BLOCK=block, num_warps=8)
    return out


def _project_qkv(attention: Attention, x: Tensor, metadata: AttentionMetadata, cache: LayerCache) -> Tensor:
    """QKV projection, QK-norm, RoPE and KV-cache write: x [S, Q, K] -> queries [S, J, G, Q, D]."""
    slots, query_len, _ = x.shape
    heads, kv_heads, dim = attention.heads, attention.kv_heads, attention.head_dim
    qkv = x.new_empty(slots, query_len, (heads + 2 * kv_heads) * dim)
    if attention.wqkv is not None:
        linear(x, attention.wqkv, out=qkv)
    else:
        parts = qkv.split((heads * dim, kv_heads * dim, kv_heads * dim), dim=-1)
        for part, projection in zip(parts, (attention.wq, attention.wk, attention.wv), strict=True):
            linear(x, projection, out=part)
    q = x.new_empty(slots, kv_heads, heads // kv_heads, query_len, dim)
    _qk_norm_rope_cache_write[(slots * query_len, heads + 2 * kv_heads)](
        qkv, attention.q_norm.weight, attention.k_norm.weight, metadata.cos, metadata.sin, metadata.positions,
        q, cache.k, cache.v, cache.k.stride(0), cache.k.stride(1), query_len, attention.q_norm.eps,
        HEADS=heads, KV_HEADS=kv_heads, HALF=dim // 2, BLOCK=triton.next_power_of_2(dim // 2), num_warps=1,
    )  # fmt: skip
    return q


def linear(
    x: Tensor,
    matrix: Tensor | nn.Module,
    *,
    up: nn.Module | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x [S, Q, K] times a linear layer's weight [N, K] -> [S, Q, N] of x's dtype, for M up to MAX_M.

    Args:
        matrix: a weight, or a layer without bias, of 8-bit weights too.
        up: a second layer, for SwiGLU: the result is silu(matrix x) * up x.
        residual: [S, Q, N], added to the result.
        out: [S, Q, N] to write to; rows may have a stride of more than N.
    """
    weight, scale = _weight_and_scale(matrix)
    up_weight, up_scale = (weight, scale) if up is None else _weight_and_scale(up)
    (n, k), m = weight.shape, x.shape[:-1].numel()
    out = x.new_empty(*x.shape[:-1], n) if out is None else out
    x = x.contiguous()
    pointers = (x, weight, scale, up_weight, up_scale, x if residual is None else residual, out)
    flags = {"HAS_SCALE": scale is not weight, "HAS_UP": up is not None, "HAS_RESIDUAL": residual is not None}
    if m == 1:
        grid = (triton.cdiv(n, GEMV_BLOCK_N),)
        _gemv[grid](*pointers, n, K=k, **flags, BLOCK_N=GEMV_BLOCK_N, BLOCK_K=GEMV_BLOCK_K, num_warps=8)
        return out
    tile = skinny_gemm_tile(m, n, has_up=up is not None, itemsize=x.dtype.itemsize)
    grid = (triton.cdiv(n, tile["BLOCK_N"]),)
    _skinny_gemm[grid](*pointers, m, n, out.stride(-2), K=k, **flags, **tile, NUM_STAGES=NUM_STAGES, num_warps=4)
    return out


def skinny_gemm_tile(m: int, n: int, *, has_up: bool, itemsize: int) -> dict[str, int]:
    """Tile of `_skinny_gemm`: at least MIN_PROGRAMS programs, and stages that fit the shared memory of every GPU."""
    block_m = max(16, triton.next_power_of_2(m))
    block_n = 64 if n >= 64 * MIN_PROGRAMS else 32
    rows = block_m + block_n * (2 if has_up else 1)
    block_k = 256
    while rows * block_k * itemsize > STAGE_BYTES:
        block_k //= 2
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}


def _weight_and_scale(matrix: Tensor | nn.Module) -> tuple[Tensor, Tensor]:
    """A weight and its scale per output channel; without a scale the weight twice, as a pointer that is not read."""
    if isinstance(matrix, Int8Linear):
        return matrix.weight, matrix.scale
    weight = matrix if isinstance(matrix, Tensor) else matrix.weight
    assert isinstance(weight, Tensor)
    return weight, weight


@triton.jit  # type: ignore[untyped-decorator]
def _rms_norm_kernel(x_ptr, weight_ptr, out_ptr, eps, K: tl.constexpr, BLOCK: tl.constexpr):
    """One row."""
    k, offset = tl.arange(0, BLOCK), tl.program_id(0) * K
    in_k = k < K
    x = tl.load(x_ptr + offset + k, mask=in_k, other=0.0)
    x32 = x.to(tl.float32)
    factor = tl.rsqrt(tl.sum(x32 * x32, 0) / K + eps)
    out = (x32 * factor).to(x.dtype) * tl.load(weight_ptr + k, mask=in_k, other=0.0)
    tl.store(out_ptr + offset + k, out, mask=in_k)


@triton.jit  # type: ignore[untyped-decorator]
def _gemv(
    x_ptr, w_ptr, scale_ptr, up_ptr, up_scale_ptr, residual_ptr, out_ptr, n,
    K: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_UP: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """M = 1: BLOCK_N outputs per program, accumulated in registers."""
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = output < n
    w_row = output[:, None].to(tl.int64) * K
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up_acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for first in tl.range(0, K, BLOCK_K, num_stages=1):
        k = first + tl.arange(0, BLOCK_K)
        in_k = k < K
        w_mask = in_n[:, None] & in_k[None, :]
        x = tl.load(x_ptr + k, mask=in_k, other=0.0).to(tl.float32)
        acc += tl.load(w_ptr + w_row + k[None, :], mask=w_mask, other=0.0).to(tl.float32) * x[None, :]
        if HAS_UP:
            up_acc += tl.load(up_ptr + w_row + k[None, :], mask=w_mask, other=0.0).to(tl.float32) * x[None, :]
    y = tl.sum(acc, 1)
    up = tl.sum(up_acc, 1)
    _epilogue(y, up, scale_ptr + output, up_scale_ptr + output, residual_ptr + output, out_ptr + output, in_n,
              HAS_SCALE, HAS_UP, HAS_RESIDUAL)  # fmt: skip


@triton.jit(do_not_specialize=["m"])  # type: ignore[untyped-decorator]
def _skinny_gemm(
    x_ptr, w_ptr, scale_ptr, up_ptr, up_scale_ptr, residual_ptr, out_ptr, m, n, out_stride,
    K: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_UP: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """M up to MAX_M: BLOCK_N outputs of all rows per program, on tensor cores with the weight as the first operand."""
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    in_n, in_m = output < n, row < m
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    up_acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    w_row = output[:, None].to(tl.int64) * K
    for first in tl.range(0, K, BLOCK_K, num_stages=NUM_STAGES):
        k = first + tl.arange(0, BLOCK_K)
        in_k = k < K
        w_mask = in_n[:, None] & in_k[None, :]
        x = tl.load(x_ptr + row[None, :] * K + k[:, None], mask=in_m[None, :] & in_k[:, None], other=0.0)
        w = tl.load(w_ptr + w_row + k[None, :], mask=w_mask, other=0.0).to(x.dtype)
        acc = tl.dot(w, x, acc, input_precision="ieee")
        if HAS_UP:
            up_w = tl.load(up_ptr + w_row + k[None, :], mask=w_mask, other=0.0).to(x.dtype)
            up_acc = tl.dot(up_w, x, up_acc, input_precision="ieee")
    column = output[:, None] + tl.zeros([1, BLOCK_M], tl.int32)
    _epilogue(acc, up_acc, scale_ptr + column, up_scale_ptr + column, residual_ptr + row[None, :] * n + column,
              out_ptr + row[None, :] * out_stride + column, in_n[:, None] & in_m[None, :],
              HAS_SCALE, HAS_UP, HAS_RESIDUAL)  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _epilogue(
    y, up, scale_ptrs, up_scale_ptrs, residual_ptrs, out_ptrs, mask,
    HAS_SCALE: tl.constexpr, HAS_UP: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Dequantise, SwiGLU, add the residual, store."""
    if HAS_SCALE:
        y *= tl.load(scale_ptrs, mask=mask, other=0.0).to(tl.float32)
        up *= tl.load(up_scale_ptrs, mask=mask, other=0.0).to(tl.float32)
    if HAS_UP:
        y = y * tl.sigmoid(y) * up
    if HAS_RESIDUAL:
        y += tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptrs, y.to(out_ptrs.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _qk_norm_rope_cache_write(
    qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, q_ptr, k_ptr, v_ptr,
    stride_slot, stride_head, query_len, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one token. Queries: norm, RoPE, stored by group. Keys: norm, RoPE, into the cache. Values: into the
    cache."""
    token, head = tl.program_id(0), tl.program_id(1)
    slot, column = token // query_len, token % query_len
    d = tl.arange(0, BLOCK)
    in_d = d < HALF
    source = qkv_ptr + (token * (HEADS + 2 * KV_HEADS) + head) * 2 * HALF + d
    low, high = tl.load(source, mask=in_d, other=0.0), tl.load(source + HALF, mask=in_d, other=0.0)
    cache_offset = slot.to(tl.int64) * stride_slot + tl.load(positions_ptr + token) * 2 * HALF + d
    if head >= HEADS + KV_HEADS:
        target = v_ptr + cache_offset + (head - HEADS - KV_HEADS) * stride_head
    else:
        norm_ptr = q_norm_ptr
        target = q_ptr + ((slot * HEADS + head) * query_len + column) * 2 * HALF + d
        if head >= HEADS:
            norm_ptr = k_norm_ptr
            target = k_ptr + cache_offset + (head - HEADS) * stride_head
        dtype = low.dtype
        x, y = low.to(tl.float32), high.to(tl.float32)
        factor = tl.rsqrt((tl.sum(x * x, 0) + tl.sum(y * y, 0)) / (2 * HALF) + eps)
        x = (x * factor).to(dtype) * tl.load(norm_ptr + d, mask=in_d, other=0.0)
        y = (y * factor).to(dtype) * tl.load(norm_ptr + HALF + d, mask=in_d, other=0.0)
        cos_ptrs, sin_ptrs = cos_ptr + token * 2 * HALF + d, sin_ptr + token * 2 * HALF + d
        x, y = x.to(tl.float32), y.to(tl.float32)
        cos_x, sin_x = tl.load(cos_ptrs, mask=in_d, other=0.0), tl.load(sin_ptrs, mask=in_d, other=0.0)
        cos_y = tl.load(cos_ptrs + HALF, mask=in_d, other=0.0)
        sin_y = tl.load(sin_ptrs + HALF, mask=in_d, other=0.0)
        low = (x * cos_x.to(tl.float32) - y * sin_x.to(tl.float32)).to(dtype)
        high = (y * cos_y.to(tl.float32) + x * sin_y.to(tl.float32)).to(dtype)
    tl.store(target, low, mask=in_d)
    tl.store(target + HALF, high, mask=in_d)
