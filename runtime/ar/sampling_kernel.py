"""Nucleus sampling for CUDA: one kernel, without a sort.

It draws the tokens of `sampling.draw`, which sorts the probabilities, keeps the nucleus, and takes the arg-max of p / e
over it. The kernel takes the arg-max of p / e over all candidates first, then checks whether that token is in the
nucleus: whether the tokens of higher probability hold at most `top_p`. If not, that token and all of lower probability
are removed from the candidates, and the search repeats. Most draws take one iteration.

Reductions have a fixed order, so a draw is reproducible to the bit.

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
    slots, window, vocab = logits.shape
    drawn = torch.empty(slots, window, dtype=torch.int64, device=logits.device)
    _draw[(slots * window,)](
        logits.contiguous(), keys, positions.contiguous(), tokens, temperature, top_p, drawn, window,
        V=vocab, MIX_1=MIX_1, MIX_2=MIX_2, BLOCK=min(BLOCK, triton.next_power_of_2(vocab)), num_warps=WARPS,
    )  # fmt: skip
    return drawn


@triton.jit  # type: ignore[untyped-decorator]
def _draw(
    logits_ptr, keys_ptr, positions_ptr, tokens_ptr, temperature_ptr, top_p_ptr, drawn_ptr, window,
    V: tl.constexpr, MIX_1: tl.constexpr, MIX_2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of logits."""
    row = tl.program_id(0)
    slot = row // window
    row_ptr = logits_ptr + row.to(tl.int64) * V
    temperature, top_p = tl.load(temperature_ptr + slot), tl.load(top_p_ptr + slot)
    counter = tl.load(keys_ptr + slot) + tl.load(positions_ptr + row)
    counter = (counter ^ _shift_right(counter, 30)) * MIX_1
    counter = (counter ^ _shift_right(counter, 27)) * MIX_2

    block_max = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(0, V, BLOCK):
        block_max = tl.maximum(block_max, _load_logits(row_ptr, first + tl.arange(0, BLOCK), V))
    max_logit = tl.max(block_max, 0) / temperature

    # The best token outside the nucleus so far, and its logit: candidates come before it. Initially there is none.
    limit, limit_token = tl.full([], float("-inf"), tl.float32), tl.full([], V, tl.int32)
    chosen = tl.full([], -1, tl.int32)
    while chosen < 0:
        best = tl.full([BLOCK], -1.0, tl.float32)
        best_token = tl.zeros([BLOCK], tl.int32)
        best_logit = tl.zeros([BLOCK], tl.float32)
        for first in range(0, V, BLOCK):
            token = first + tl.arange(0, BLOCK)
            logit = _load_logits(row_ptr, token, V)
            key = tl.load(tokens_ptr + token, mask=token < V, other=0)
            uniform = (_shift_right((counter ^ key) * MIX_1, 24).to(tl.float32) + 0.5) * (2.0**-40)
            score = tl.exp(logit / temperature - max_logit) / _exponential(uniform)
            better = (score > best) & _precedes(logit, token, limit, limit_token)
            best, best_logit = tl.where(better, score, best), tl.where(better, logit, best_logit)
            best_token = tl.where(better, token, best_token)
        is_best = tl.arange(0, BLOCK) == tl.argmax(best, 0)
        limit_token = tl.sum(tl.where(is_best, best_token, 0), 0)
        limit = tl.sum(tl.where(is_best, best_logit, 0.0), 0)

        mass_before, total_mass = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        for first in range(0, V, BLOCK):
            token = first + tl.arange(0, BLOCK)
            logit = _load_logits(row_ptr, token, V)
            p = tl.exp(logit / temperature - max_logit)
            total_mass += p
            mass_before += tl.where(_precedes(logit, token, limit, limit_token), p, 0.0)
        # With NaN logits the comparison is false and the loop ends.
        is_outside = tl.sum(mass_before, 0) > top_p * tl.sum(total_mass, 0)
        chosen = tl.where(is_outside, -1, limit_token)
    tl.store(drawn_ptr + row, chosen.to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def _load_logits(row_ptr, token, V: tl.constexpr):
    """Logits of a block of tokens in fp32; -inf past the vocabulary."""
    return tl.load(row_ptr + token, mask=token < V, other=float("-inf")).to(tl.float32)


@triton.jit
def _precedes(logit, token, limit, limit_token):
    """Whether a token comes before another in falling order. Compares logits: they are the same numbers in each pass,
    while the compiler may compute probabilities differently from one pass to the next."""
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
