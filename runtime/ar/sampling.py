"""Nucleus sampling (top-p, arXiv 1904.09751) with noise that has no state.

A token is drawn as the arg-max of log-probability plus Gumbel noise (arXiv 1411.0030), and the noise is a pure function
of (seed, position, token). So a draw depends on the logits and the request's seed alone: not on the batch, not on
what was drawn before, not on how often a position was tried.

In code the same arg-max is that of p / e with e = exp(-Gumbel), which is exponential noise: it needs no logarithm of p.

Legend: S slots, W window, V vocabulary; leading dimensions written [...] are free.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Constants of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), as int64.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64


def draw(
    logits: Tensor, keys: Tensor, positions: Tensor, tokens: Tensor, *, temperature: Tensor, top_p: Tensor
) -> Tensor:
    """One token for every row of logits [S, W, V]: `sample` with `exponential_noise`, whose arguments these are."""
    return sample(logits, exponential_noise(keys, positions, tokens), temperature=temperature, top_p=top_p)


def sample(logits: Tensor, noise: Tensor, *, temperature: Tensor, top_p: Tensor) -> Tensor:
    """One token for every row of logits [..., V].

    Args:
        noise: exponential noise, [..., V].
        temperature, top_p: broadcast to [..., 1]; for the most likely token, any temperature and a top_p of 0.
    """
    probs, order = nucleus(logits, temperature, top_p)
    choice = (probs / noise.gather(-1, order)).argmax(dim=-1, keepdim=True)
    return order.gather(-1, choice)[..., 0]


def nucleus(logits: Tensor, temperature: Tensor | float, top_p: Tensor | float) -> tuple[Tensor, Tensor]:
    """Probabilities in falling order, 0 for tokens that are dropped, and the token of each; both [..., V].

    A token stays when those before it hold at most `top_p` of the probability: the most likely one always does, and so
    does the one that crosses the threshold. What stays is not scaled up again: a draw does not need it.

    Args:
        logits: [..., V].
        temperature: above 0; a number, or a tensor that broadcasts to [..., 1].
        top_p: from 0 to 1; likewise.
    """
    probs, order = torch.softmax(logits.float() / temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probs.cumsum(dim=-1) - probs
    return probs.masked_fill(before > top_p, 0.0), order


def noise_key(seed: int) -> int:
    """The seed, scrambled once a request, as int64."""
    return int(_mix(torch.tensor(seed) + _GOLDEN))


def token_keys(vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Every token's number, scrambled once for all, [V] int64."""
    return _mix(torch.arange(vocab_size, device=device) * _GOLDEN)


def exponential_noise(keys: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Exponential noise of mean 1 for every token at every position, [S, W, V] fp32.

    Args:
        keys: [S] int64, the `noise_key` of each slot's request.
        positions: [S, W] int64, of the token that is drawn.
        tokens: [V] int64, the `token_keys`.
    """
    place = _mix(keys[:, None] + positions)  # [S, W]
    bits = (place[..., None] ^ tokens) * MIX_1  # [S, W, V]; both sides are scrambled, so one product spreads them
    # The 40 high bits, rounded to fp32: fine steps near 0, where unlikely tokens win, and never 0.
    uniform = (_shift_right(bits, 24).float() + 0.5) * 2.0**-40
    return -torch.log1p(-uniform)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser without its last step, which serves only the low bits: nobody reads those."""
    x = (x ^ _shift_right(x, 30)) * MIX_1
    return (x ^ _shift_right(x, 27)) * MIX_2


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64, which torch shifts arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
