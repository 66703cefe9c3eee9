"""Linear layers on few rows, for CUDA: a step of the decoder multiplies every weight by one row a slot.

Such a product does next to no arithmetic, so it takes as long as its weight takes to arrive. The kernel keeps several
tiles of the weight under way and lets the tensor cores, which nothing else occupies, do the sums. A row's result does
not depend on the other rows. Where the weight has too few tiles to occupy the GPU, each row of it is cut into splits,
whose sums are added in order behind the kernel.

Legend: M rows, N outputs, K inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

MAX_ROWS = 16  # the narrowest product that tensor cores do; with more rows the library's kernels are as good
TILE_N, TILE_K = 64, 128  # of the weight
STAGES = 4  # tiles under way in each program
PROGRAMS = 192  # more than today's GPUs have multiprocessors


def few_rows_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., K] times weight [N, K] -> [..., N], as `torch.nn.functional.linear`.

    For up to MAX_ROWS rows in 16-bit floats. An int8 weight is brought to the dtype of x. What has more rows, is fp32,
    or does not divide into tiles goes to torch.
    """
    n, k = weight.shape
    rows = x.shape[:-1].numel()
    splits = _splits(n, k)
    if rows > MAX_ROWS or x.dtype.itemsize != 2 or not splits:
        return F.linear(x, weight.to(x.dtype))
    parts = _product(x.reshape(rows, k), weight, splits)
    out = parts[0] if splits == 1 else parts.sum(0).to(x.dtype)
    return out.unflatten(0, x.shape[:-1])


def _splits(n: int, k: int) -> int:
    """How many programs share a row of the weight; 0 where tiles do not fit."""
    tiles, rest = divmod(n, TILE_N)
    splits = 1
    while tiles * splits < PROGRAMS and k % (2 * splits * TILE_K) == 0:
        splits *= 2
    return 0 if rest or k % TILE_K else splits


@torch.library.custom_op("cosmos_triton::few_rows_product", mutates_args=())
def _product(x: Tensor, weight: Tensor, splits: int) -> Tensor:
    """x [M, K], weight [N, K] -> the splits' sums [splits, M, N], in fp32 where there are several."""
    (m, k), n = x.shape, weight.shape[0]
    out = torch.empty(splits, m, n, device=x.device, dtype=_dtype(x, splits))
    _product_kernel[(n // TILE_N, splits)](
        x, weight, out, m, n, k // splits,
        K=k, BLOCK_M=MAX_ROWS, TILE_N=TILE_N, TILE_K=TILE_K, STAGES=STAGES,
    )  # fmt: skip
    return out


@_product.register_fake
def _(x: Tensor, weight: Tensor, splits: int) -> Tensor:
    return x.new_empty(splits, x.shape[0], weight.shape[0], dtype=_dtype(x, splits))


def _dtype(x: Tensor, splits: int) -> torch.dtype:
    return x.dtype if splits == 1 else torch.float32


@triton.jit(do_not_specialize=["m"])  # type: ignore[untyped-decorator]
def _product_kernel(
    x_ptr, w_ptr, out_ptr, m, n, share,
    K: tl.constexpr, BLOCK_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """TILE_N outputs of all rows, from one split's share of K."""
    split = tl.program_id(1)
    row = tl.arange(0, BLOCK_M)
    output = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    k = split * share + tl.arange(0, TILE_K)
    w_at = w_ptr + output[:, None].to(tl.int64) * K + k  # [TILE_N, TILE_K]
    x_at = x_ptr + row * K + k[:, None]  # [TILE_K, BLOCK_M]
    total = tl.zeros([TILE_N, BLOCK_M], tl.float32)
    for first in tl.range(0, share, TILE_K, num_stages=STAGES):
        x = tl.load(x_at + first, mask=row < m, other=0.0)
        total = tl.dot(tl.load(w_at + first).to(x.dtype), x, total)
    tl.store(out_ptr + (split * m + row) * n + output[:, None], total, mask=row < m)
