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

from cosmos_triton.runtime.sampling import MIX_1, MIX_2

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
        peak = tl.maximum(peak, _scaled(row_ptr, first, temperature, V, BLOCK))
    top = tl.max(peak, 0)
    weight = tl.zeros([BLOCK], tl.float32)
    for first in range(0, V, BLOCK):
        weight += tl.exp(_scaled(row_ptr, first, temperature, V, BLOCK) - top)
    total = tl.sum(weight, 0)

    # A token that is not in the nucleus, and its probability: nothing behind it is. At first there is none.
    limit, limit_token = tl.full([], -1.0, tl.float32), tl.full([], V, tl.int32)
    chosen = tl.full([], -1, tl.int32)
    while chosen < 0:
        best = tl.full([BLOCK], -1.0, tl.float32)
        best_token = tl.zeros([BLOCK], tl.int32)
        best_p = tl.zeros([BLOCK], tl.float32)
        for first in range(0, V, BLOCK):
            token = first + tl.arange(0, BLOCK)
            p = _probabilities(row_ptr, first, temperature, top, total, V, BLOCK)
            candidate = (token < V) & ((p > limit) | ((p == limit) & (token < limit_token)))
            key = tl.load(tokens_ptr + token, mask=token < V, other=0)
            uniform = (_shift_right((place ^ key) * MIX_1, 24).to(tl.float32) + 0.5) * (2.0**-40)
            score = tl.where(candidate, p / _exponential(uniform), -1.0)
            better = score > best
            best, best_p = tl.where(better, score, best), tl.where(better, p, best_p)
            best_token = tl.where(better, token, best_token)
        lane = tl.argmax(best, 0)
        is_lane = tl.arange(0, BLOCK) == lane
        token = tl.sum(tl.where(is_lane, best_token, 0), 0)
        p_token = tl.sum(tl.where(is_lane, best_p, 0.0), 0)

        before = tl.zeros([BLOCK], tl.float32)
        for first in range(0, V, BLOCK):
            other = first + tl.arange(0, BLOCK)
            p = _probabilities(row_ptr, first, temperature, top, total, V, BLOCK)
            before += tl.where((p > p_token) | ((p == p_token) & (other < token)), p, 0.0)
        found = (tl.sum(before, 0) <= top_p) | (tl.max(best, 0) < 0)  # the second where logits are no numbers
        chosen = tl.where(found, token, -1)
        limit, limit_token = p_token, token
    tl.store(drawn_ptr + at, chosen.to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def _scaled(row_ptr, first, temperature, V: tl.constexpr, BLOCK: tl.constexpr):
    """A block of logits over the temperature; -inf behind the last one."""
    token = first + tl.arange(0, BLOCK)
    return tl.load(row_ptr + token, mask=token < V, other=float("-inf")).to(tl.float32) / temperature


@triton.jit  # type: ignore[untyped-decorator]
def _probabilities(row_ptr, first, temperature, top, total, V: tl.constexpr, BLOCK: tl.constexpr):
    """Of a block of tokens; the same numbers each time."""
    return tl.exp(_scaled(row_ptr, first, temperature, V, BLOCK) - top) / total


@triton.jit
def _exponential(uniform):
    """-log(1 - uniform), exact where uniform is so small that the difference is 1."""
    rest = 1.0 - uniform
    return tl.where(rest == 1.0, uniform, tl.log(rest) * uniform / (rest - 1.0))


@triton.jit  # type: ignore[untyped-decorator]
def _shift_right(x, bits: tl.constexpr):
    """Logical shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
