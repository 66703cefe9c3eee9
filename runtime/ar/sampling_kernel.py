"""Nucleus sampling for CUDA: one kernel, which sorts nothing.

It draws what `sampling.draw` draws. That one sorts the probabilities, keeps those in front, and takes the token with
the largest p / e among them. Here the token with the largest p / e is sought first, and then asked whether it would
have been kept: whether those before it in the order hold at most `top_p`. If not, it is dropped with all that stand
behind it, and the next is sought. Most often the first one stays.

Sums are made in a fixed order, so a draw is the same each time.

Legend: S slots, W window, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cosmos_triton.runtime.ar.sampling import MIX_1, MIX_2

BLOCK, WARPS = 8192, 16


def draw_cuda(
    logits: Tensor, keys: Tensor, positions: Tensor, tokens: Tensor, *, temperature: Tensor, top_p: Tensor
) -> Tensor:
    """As `sampling.draw`: [S, W]."""
    slots, width, vocab = logits.shape
    drawn = torch.empty(slots, width, dtype=torch.int64, device=logits.device)
    _draw[(slots * width,)](
        logits.contiguous(), keys, positions.contiguous(), tokens, temperature, top_p, drawn, width,
        V=vocab, MIX_1=MIX_1, MIX_2=MIX_2, BLOCK=min(BLOCK, triton.next_power_of_2(vocab)), num_warps=WARPS,
    )  # fmt: skip
    return drawn


@triton.jit  # type: ignore[untyped-decorator]
def _draw(
    logits_ptr, keys_ptr, positions_ptr, tokens_ptr, temperature_ptr, top_p_ptr, drawn_ptr, width,
    V: tl.constexpr, MIX_1: tl.constexpr, MIX_2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of logits."""
    at = tl.program_id(0)
    slot = at // width
    row_ptr = logits_ptr + at.to(tl.int64) * V
    temperature, top_p = tl.load(temperature_ptr + slot), tl.load(top_p_ptr + slot)
    place = tl.load(keys_ptr + slot) + tl.load(positions_ptr + at)
    place = (place ^ _shift_right(place, 30)) * MIX_1
    place = (place ^ _shift_right(place, 27)) * MIX_2

    peak = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(0, V, BLOCK):
        peak = tl.maximum(peak, _logits(row_ptr, first + tl.arange(0, BLOCK), V))
    top = tl.max(peak, 0) / temperature

    # A token that is not in the nucleus, and its logit: nothing behind it is. At first there is none.
    limit, limit_token = tl.full([], float("-inf"), tl.float32), tl.full([], V, tl.int32)
    chosen = tl.full([], -1, tl.int32)
    while chosen < 0:
        best = tl.full([BLOCK], -1.0, tl.float32)
        best_token = tl.zeros([BLOCK], tl.int32)
        best_logit = tl.zeros([BLOCK], tl.float32)
        for first in range(0, V, BLOCK):
            token = first + tl.arange(0, BLOCK)
            logit = _logits(row_ptr, token, V)
            key = tl.load(tokens_ptr + token, mask=token < V, other=0)
            uniform = (_shift_right((place ^ key) * MIX_1, 24).to(tl.float32) + 0.5) * (2.0**-40)
            score = tl.exp(logit / temperature - top) / _exponential(uniform)
            better = (score > best) & _before(logit, token, limit, limit_token)
            best, best_logit = tl.where(better, score, best), tl.where(better, logit, best_logit)
            best_token = tl.where(better, token, best_token)
        is_best = tl.arange(0, BLOCK) == tl.argmax(best, 0)
        limit_token = tl.sum(tl.where(is_best, best_token, 0), 0)
        limit = tl.sum(tl.where(is_best, best_logit, 0.0), 0)

        before, total = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        for first in range(0, V, BLOCK):
            token = first + tl.arange(0, BLOCK)
            logit = _logits(row_ptr, token, V)
            p = tl.exp(logit / temperature - top)
            total += p
            before += tl.where(_before(logit, token, limit, limit_token), p, 0.0)
        # Where logits are no numbers, no sum is above another, and the search ends.
        dropped = tl.sum(before, 0) > top_p * tl.sum(total, 0)
        chosen = tl.where(dropped, -1, limit_token)
    tl.store(drawn_ptr + at, chosen.to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def _logits(row_ptr, token, V: tl.constexpr):
    """Of a block of tokens; -inf behind the last one."""
    return tl.load(row_ptr + token, mask=token < V, other=float("-inf")).to(tl.float32)


@triton.jit
def _before(logit, token, limit, limit_token):
    """Whether a token comes before another in falling order. By their logits: those are the same numbers in each pass,
    which cannot be said of what is computed from them."""
    return (logit > limit) | ((logit == limit) & (token < limit_token))


@triton.jit
def _exponential(uniform):
    """-log(1 - uniform), exact where uniform is so small that the difference is 1."""
    rest = 1.0 - uniform
    return tl.where(rest == 1.0, uniform, tl.log(rest) * uniform / (rest - 1.0))


@triton.jit  # type: ignore[untyped-decorator]
def _shift_right(x, bits: tl.constexpr):
    """Logical shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
