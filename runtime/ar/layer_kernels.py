"""The transformer's layer for CUDA, when it advances few rows: one row a slot, or a short window.

A step then multiplies every weight by a handful of rows and does next to nothing else. It takes as long as the weights
and the KV cache take to arrive, plus what is lost between kernels. So each weight is read once, at the speed of memory,
and what lies between two products happens within them or in a kernel of its own: nine a layer.

A row's result does not depend on the other rows, nor on how many steps led to it.

Legend: S slots, W window, M = S * W rows, N outputs, K inputs, H query heads, J key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from cosmos_triton.networks.ar_transformer import ARTransformer, Attention, Layer, RMSNorm
from cosmos_triton.networks.kv_cache import CacheAttention, LayerCache, Window
from cosmos_triton.runtime.int8 import Int8Linear

MAX_ROWS = 128  # from some 200 on arithmetic takes longer than the weights, and the library's products are better
ONE_ROW_N, ONE_ROW_K = 1, 2048  # piece of a weight that a program takes at a time; on an H200 the fastest of eight
PROGRAMS = 192  # more than today's GPUs have multiprocessors
STAGES, STAGE_BYTES = 4, 24 * 1024  # of shared memory: the GPUs that have least of it give a program 99 KB


def layer_forward(layer: Layer) -> Callable[..., Tensor]:
    """What takes the place of the layer's own forward, and leaves many rows to that."""
    plain = layer.forward

    def forward(x: Tensor, window: Window, cache: LayerCache, attend: CacheAttention) -> Tensor:
        if x.shape[:-1].numel() > MAX_ROWS:
            return plain(x, window, cache, attend)
        attention, feed_forward = layer.attention, layer.feed_forward
        if window.absolute is not None:
            x = x + window.absolute
        q = _project(attention, _norm(x, layer.attention_norm), window, cache)
        x = _product(_rows(attend(q, cache.k, cache.v, window)), attention.wo, add=x)
        if cache.cross_k is not None and cache.cross_v is not None:
            cross = layer.cross_attention
            q = _product(_norm(x, layer.cross_attention_norm), cross.wq)
            q = cross.group(_norm(cross.split(q), cross.q_norm))
            out = F.scaled_dot_product_attention(q.flatten(2, 3), cache.cross_k, cache.cross_v)
            x = _product(_rows(out.unflatten(2, q.shape[2:4])), cross.wo, add=x)
        hidden = _product(_norm(x, layer.ffn_norm), feed_forward.w1, gated=feed_forward.w3)
        return _product(hidden, feed_forward.w2, add=x)

    return forward


def logits(network: ARTransformer, hidden: Tensor) -> Tensor:
    """As `network.logits`. 8-bit weights stay as they are for many rows too: in bf16 all of them take half a GB."""
    rows, vocab = hidden.shape[:-1].numel(), network.config.vocab_size
    if rows > MAX_ROWS and not isinstance(network.output, Int8Linear):
        return network.output(network.norm(hidden))
    out = hidden.new_empty(1, rows, vocab)
    normed = _norm(hidden, network.norm).view(1, rows, -1)
    for part, into in zip(normed.split(MAX_ROWS, dim=1), out.split(MAX_ROWS, dim=1), strict=True):
        _product(part, network.output, out=into)
    return out.view(*hidden.shape[:-1], vocab)


def _rows(out: Tensor) -> Tensor:
    """Attention output [S, J, G, W, D] -> [S, W, H * D]."""
    return out.permute(0, 3, 1, 2, 4).flatten(2)


def _norm(x: Tensor, norm: RMSNorm) -> Tensor:
    """As `norm(x)`, x [..., K]."""
    x, k = x.contiguous(), x.shape[-1]
    out = torch.empty_like(x)
    grid, block = (x.shape[:-1].numel(),), triton.next_power_of_2(k)
    _norm_row[grid](x, norm.weight, out, norm.eps, K=k, BLOCK=block, num_warps=8)
    return out


def _project(attention: Attention, x: Tensor, window: Window, cache: LayerCache) -> Tensor:
    """Writes the window's keys and values into the cache; returns its queries [S, J, G, W, D]."""
    slots, width, _ = x.shape
    heads, kv_heads, dim = attention.heads, attention.kv_heads, attention.head_dim
    qkv = x.new_empty(slots, width, (heads + 2 * kv_heads) * dim)
    if attention.fused is not None:
        _product(x, attention.fused, out=qkv)
    else:
        parts = qkv.split((heads * dim, kv_heads * dim, kv_heads * dim), dim=-1)
        for part, projection in zip(parts, (attention.wq, attention.wk, attention.wv), strict=True):
            _product(x, projection, out=part)
    q = x.new_empty(slots, kv_heads, heads // kv_heads, width, dim)
    _place_heads[(slots * width, heads + 2 * kv_heads)](
        qkv, attention.q_norm.weight, attention.k_norm.weight, window.cos, window.sin, window.rows,
        q, cache.k, cache.v, cache.k.stride(0), cache.k.stride(1), width, attention.q_norm.eps,
        HEADS=heads, KV_HEADS=kv_heads, HALF=dim // 2, BLOCK=triton.next_power_of_2(dim // 2), num_warps=1,
    )  # fmt: skip
    return q


def _product(
    x: Tensor,
    matrix: Tensor | nn.Module,
    *,
    gated: nn.Module | None = None,
    add: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x [S, W, K] times a linear layer's weight [N, K] -> [S, W, N], of x's dtype.

    Args:
        gated: a second layer: the result is silu(first) * second.
        add: [S, W, N], added to the result.
        out: [S, W, N] to write to; its rows may lie in wider ones.
    """
    weight, scale = _weight(matrix)
    second, second_scale = (weight, scale) if gated is None else _weight(gated)
    (n, k), m = weight.shape, x.shape[:-1].numel()
    out = x.new_empty(*x.shape[:-1], n) if out is None else out
    x = x.contiguous()
    pointers = (x, weight, scale, second, second_scale, x if add is None else add, out)
    flags = {"SCALED": scale is not weight, "GATED": gated is not None, "ADDED": add is not None}
    if m == 1:
        grid = (triton.cdiv(n, ONE_ROW_N),)
        _one_row[grid](*pointers, n, K=k, **flags, BLOCK_N=ONE_ROW_N, BLOCK_K=ONE_ROW_K, num_warps=8)
        return out
    tile = few_rows_tile(m, n, gated=gated is not None, itemsize=x.dtype.itemsize)
    grid = (triton.cdiv(n, tile["BLOCK_N"]),)
    _few_rows[grid](*pointers, m, n, out.stride(-2), K=k, **flags, **tile, STAGES=STAGES, num_warps=4)
    return out


def few_rows_tile(m: int, n: int, *, gated: bool, itemsize: int) -> dict[str, int]:
    """How `_few_rows` cuts its work: enough programs for every multiprocessor, and stages that fit every GPU."""
    block_m = max(16, triton.next_power_of_2(m))
    block_n = 64 if n >= 64 * PROGRAMS else 32
    rows = block_m + block_n * (2 if gated else 1)
    block_k = 256
    while rows * block_k * itemsize > STAGE_BYTES:
        block_k //= 2
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}


def _weight(matrix: Tensor | nn.Module) -> tuple[Tensor, Tensor]:
    """A weight and its rows' scale; where it has none, the weight again, as a pointer that is not read."""
    if isinstance(matrix, Int8Linear):
        return matrix.weight, matrix.scale
    weight = matrix if isinstance(matrix, Tensor) else matrix.weight
    assert isinstance(weight, Tensor)
    return weight, weight


@triton.jit  # type: ignore[untyped-decorator]
def _norm_row(x_ptr, weight_ptr, out_ptr, eps, K: tl.constexpr, BLOCK: tl.constexpr):
    k, at = tl.arange(0, BLOCK), tl.program_id(0) * K
    in_k = k < K
    x = tl.load(x_ptr + at + k, mask=in_k, other=0.0)
    x32 = x.to(tl.float32)
    factor = tl.rsqrt(tl.sum(x32 * x32, 0) / K + eps)
    out = (x32 * factor).to(x.dtype) * tl.load(weight_ptr + k, mask=in_k, other=0.0)
    tl.store(out_ptr + at + k, out, mask=in_k)


@triton.jit  # type: ignore[untyped-decorator]
def _one_row(
    x_ptr, w_ptr, scale_ptr, second_ptr, second_scale_ptr, add_ptr, out_ptr, n,
    K: tl.constexpr, SCALED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs of one row."""
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = output < n
    row = output[:, None].to(tl.int64) * K
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    second = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for first in tl.range(0, K, BLOCK_K, num_stages=1):
        k = first + tl.arange(0, BLOCK_K)
        in_k = k < K
        here = in_n[:, None] & in_k[None, :]
        x = tl.load(x_ptr + k, mask=in_k, other=0.0).to(tl.float32)
        total += tl.load(w_ptr + row + k[None, :], mask=here, other=0.0).to(tl.float32) * x[None, :]
        if GATED:
            second += tl.load(second_ptr + row + k[None, :], mask=here, other=0.0).to(tl.float32) * x[None, :]
    y = tl.sum(total, 1)
    z = tl.sum(second, 1)
    _finish(y, z, scale_ptr + output, second_scale_ptr + output, add_ptr + output, out_ptr + output, in_n,
            SCALED, GATED, ADDED)  # fmt: skip


@triton.jit(do_not_specialize=["m"])  # type: ignore[untyped-decorator]
def _few_rows(
    x_ptr, w_ptr, scale_ptr, second_ptr, second_scale_ptr, add_ptr, out_ptr, m, n, out_stride,
    K: tl.constexpr, SCALED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs of all rows, on the tensor cores: they have nothing else to do."""
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    in_n, in_m = output < n, row < m
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    second = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    w_row = output[:, None].to(tl.int64) * K
    for first in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = first + tl.arange(0, BLOCK_K)
        in_k = k < K
        here = in_n[:, None] & in_k[None, :]
        x = tl.load(x_ptr + row[None, :] * K + k[:, None], mask=in_m[None, :] & in_k[:, None], other=0.0)
        w = tl.load(w_ptr + w_row + k[None, :], mask=here, other=0.0).to(x.dtype)
        total = tl.dot(w, x, total, input_precision="ieee")
        if GATED:
            u = tl.load(second_ptr + w_row + k[None, :], mask=here, other=0.0).to(x.dtype)
            second = tl.dot(u, x, second, input_precision="ieee")
    n_at = output[:, None] + tl.zeros([1, BLOCK_M], tl.int32)
    _finish(total, second, scale_ptr + n_at, second_scale_ptr + n_at, add_ptr + row[None, :] * n + n_at,
            out_ptr + row[None, :] * out_stride + n_at, in_n[:, None] & in_m[None, :],
            SCALED, GATED, ADDED)  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _finish(
    y, z, scale_at, second_scale_at, add_at, out_at, mask,
    SCALED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """What is done to a product before it is stored."""
    if SCALED:
        y *= tl.load(scale_at, mask=mask, other=0.0).to(tl.float32)
        z *= tl.load(second_scale_at, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        y = y * tl.sigmoid(y) * z
    if ADDED:
        y += tl.load(add_at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_at, y.to(out_at.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _place_heads(
    qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, rows_ptr, q_ptr, k_ptr, v_ptr,
    stride_slot, stride_head, width, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one row: a query is normed, rotated and put by its group; a key likewise into the cache; a value as
    it is."""
    at, head = tl.program_id(0), tl.program_id(1)
    slot, column = at // width, at % width
    d = tl.arange(0, BLOCK)
    in_d = d < HALF
    source = qkv_ptr + (at * (HEADS + 2 * KV_HEADS) + head) * 2 * HALF + d
    low, high = tl.load(source, mask=in_d, other=0.0), tl.load(source + HALF, mask=in_d, other=0.0)
    cache_at = slot.to(tl.int64) * stride_slot + tl.load(rows_ptr + at) * 2 * HALF + d
    if head >= HEADS + KV_HEADS:
        target = v_ptr + cache_at + (head - HEADS - KV_HEADS) * stride_head
    else:
        norm_ptr = q_norm_ptr
        target = q_ptr + ((slot * HEADS + head) * width + column) * 2 * HALF + d
        if head >= HEADS:
            norm_ptr = k_norm_ptr
            target = k_ptr + cache_at + (head - HEADS) * stride_head
        dtype = low.dtype
        x, y = low.to(tl.float32), high.to(tl.float32)
        factor = tl.rsqrt((tl.sum(x * x, 0) + tl.sum(y * y, 0)) / (2 * HALF) + eps)
        x = (x * factor).to(dtype) * tl.load(norm_ptr + d, mask=in_d, other=0.0)
        y = (y * factor).to(dtype) * tl.load(norm_ptr + HALF + d, mask=in_d, other=0.0)
        cos_at, sin_at = cos_ptr + at * 2 * HALF + d, sin_ptr + at * 2 * HALF + d
        x, y = x.to(tl.float32), y.to(tl.float32)
        cos, sin = tl.load(cos_at, mask=in_d, other=0.0), tl.load(sin_at, mask=in_d, other=0.0)
        cos_y, sin_y = tl.load(cos_at + HALF, mask=in_d, other=0.0), tl.load(sin_at + HALF, mask=in_d, other=0.0)
        low = (x * cos.to(tl.float32) - y * sin.to(tl.float32)).to(dtype)
        high = (y * cos_y.to(tl.float32) + x * sin_y.to(tl.float32)).to(dtype)
    tl.store(target, low, mask=in_d)
    tl.store(target + HALF, high, mask=in_d)
