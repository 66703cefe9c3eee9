"""Nucleus sampling (top-p, arXiv 1904.09751) with counter-based noise.

A token is drawn by the Gumbel-max trick (arXiv 1411.0030): the arg-max of log-probability plus Gumbel noise. The noise
is a pure function of (seed, position, token), so a draw depends on the logits and the request's seed alone: not on the
batch, on earlier draws, or on how often a position is drawn.

The code takes the equal arg-max of p / e with exponential noise e = exp(-Gumbel), which needs no logarithm of p.

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
    """One token per row of logits [S, W, V] -> [S, W]: `sample` with the `exponential_noise` of the other arguments."""
    return sample(logits, exponential_noise(keys, positions, tokens), temperature=temperature, top_p=top_p)


def sample(logits: Tensor, noise: Tensor, *, temperature: Tensor, top_p: Tensor) -> Tensor:
    """One token per row of logits [..., V] -> [...].

    Args:
        noise: exponential noise, [..., V].
        temperature, top_p: broadcast to [..., 1]. A top_p of 0 is greedy decoding, at any temperature.
    """
    probs, order = nucleus(logits, temperature, top_p)
    choice = (probs / noise.gather(-1, order)).argmax(dim=-1, keepdim=True)
    return order.gather(-1, choice)[..., 0]


def nucleus(logits: Tensor, temperature: Tensor | float, top_p: Tensor | float) -> tuple[Tensor, Tensor]:
    """Probabilities in falling order, 0 outside the nucleus, and the token of each; both [..., V].

    A token is in the nucleus if the tokens before it hold at most `top_p` of the probability: always the most likely
    one, and the one that crosses the threshold. Probabilities are not renormalised, which a draw does not need.

    Args:
        logits: [..., V].
        temperature: above 0; a number, or a tensor that broadcasts to [..., 1].
        top_p: from 0 to 1; likewise.
    """
    probs, order = torch.softmax(logits.float() / temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probs.cumsum(dim=-1) - probs
    return probs.masked_fill(before > top_p, 0.0), order


def noise_key(seed: int) -> int:
    """The hashed seed of a request, int64."""
    return int(_mix(torch.tensor(seed) + _GOLDEN))


def token_keys(vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """The hash of every token id, [V] int64."""
    return _mix(torch.arange(vocab_size, device=device) * _GOLDEN)


def exponential_noise(keys: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Exponential noise of mean 1 for every token at every position, [S, W, V] fp32.

    Args:
        keys: [S] int64, the `noise_key` of each slot's request.
        positions: [S, W] int64, of the drawn token.
        tokens: [V] int64, the `token_keys`.
    """
    counter = _mix(keys[:, None] + positions)  # [S, W]
    bits = (counter[..., None] ^ tokens) * MIX_1  # [S, W, V]; both operands are hashes, so one multiplication suffices
    # The 40 high bits, rounded to fp32: never 0, and a fine resolution near 0, which decides for unlikely tokens.
    uniform = (_shift_right(bits, 24).float() + 0.5) * 2.0**-40
    return -torch.log1p(-uniform)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 without its last xor-shift, which changes the low bits alone: they are not used."""
    x = (x ^ _shift_right(x, 30)) * MIX_1
    return (x ^ _shift_right(x, 27)) * MIX_2


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64, which torch shifts arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
