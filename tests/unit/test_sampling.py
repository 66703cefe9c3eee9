"""Draws follow the filtered distribution, and the noise has no pattern over positions and seeds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cosmos_triton.runtime.ar.sampling import exponential_noise, noise_key, nucleus, sample, token_keys

DRAWS = 40_000


def noise(*, seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    keys = torch.tensor([noise_key(seed) for seed in seeds.tolist()])
    return exponential_noise(keys, positions, token_keys(vocab_size))


def draw_many(logits: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """DRAWS tokens from one row of logits [V]: 40 seeds at 1,000 positions."""
    positions = torch.arange(DRAWS // 40).expand(40, -1)
    drawn = sample(
        logits.expand(40, DRAWS // 40, -1),
        noise(seeds=torch.arange(40), positions=positions, vocab_size=len(logits)),
        temperature=torch.tensor(temperature),
        top_p=torch.tensor(top_p),
    )
    return drawn.flatten()


def chi_square_per_degree(counts: Tensor, expected: Tensor) -> float:
    """About 1 +- sqrt(2 / degrees) where counts follow the expectation."""
    used = expected > 5
    return (((counts - expected)[used] ** 2 / expected[used]).sum() / (used.sum() - 1)).item()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.8), (0.7, 0.95), (2.0, 1.0)])
def test_draws_follow_the_filtered_distribution(temperature: float, top_p: float) -> None:
    logits = 1.5 * torch.randn(60, generator=torch.Generator().manual_seed(3))
    probs = in_vocabulary_order(*nucleus(logits, temperature, top_p))
    probs /= probs.sum()
    counts = torch.bincount(draw_many(logits, temperature=temperature, top_p=top_p), minlength=60)
    assert not counts[probs == 0].any(), "a token outside the nucleus was drawn"
    assert chi_square_per_degree(counts, probs * DRAWS) < 1.9


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    probs = torch.tensor([0.05, 0.5, 0.15, 0.3])
    for top_p, kept in ((0.0, [1]), (0.49, [1]), (0.6, [1, 3]), (0.85, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        assert in_vocabulary_order(*nucleus(probs.log(), 1.0, top_p)).nonzero().flatten().tolist() == kept


def test_top_p_zero_is_greedy_whatever_the_noise_and_takes_the_first_of_equals() -> None:
    logits = torch.randint(6, (50, 50)).float()
    drawn = sample(logits, torch.rand(50, 50), temperature=torch.tensor(3.0), top_p=torch.tensor(0.0))
    assert torch.equal(drawn, logits.argmax(-1))


def in_vocabulary_order(probs: Tensor, order: Tensor) -> Tensor:
    return torch.zeros_like(probs).scatter(-1, order, probs)


def test_noise_is_exponential_down_to_one_in_a_million() -> None:
    x = noise(seeds=torch.tensor([7]), positions=torch.arange(1000)[None], vocab_size=1000)
    assert (x > 0).all()
    for quantile in (1e-5, 1e-3, 0.1, 0.5, 0.9, 0.999):
        count = (x < -math.log1p(-quantile)).sum().item()
        assert abs(count - quantile * 1e6) < 5 * math.sqrt(quantile * 1e6)
    x = noise(seeds=torch.arange(40), positions=torch.arange(1000).expand(40, -1), vocab_size=500)
    assert 0 < (x < 1e-6).sum().item() < 60  # 20 expected of 20 million


@pytest.mark.parametrize("offset", [1, 2, 1000])
def test_neighbouring_positions_and_seeds_are_independent(offset: int) -> None:
    """Correlation of 400,000 pairs is within five standard errors of zero."""
    seeds, positions = torch.arange(20), torch.arange(100).expand(20, -1)
    here = noise(seeds=seeds, positions=positions, vocab_size=200)
    for other in (
        noise(seeds=seeds, positions=positions + offset, vocab_size=200),
        noise(seeds=seeds + offset, positions=positions, vocab_size=200),
        noise(seeds=seeds + offset, positions=positions - offset, vocab_size=200),
        noise(seeds=seeds - offset, positions=positions, vocab_size=200),
    ):
        correlation = torch.corrcoef(torch.stack([here.flatten(), other.flatten()]))[0, 1]
        assert correlation.abs() < 5 * here.numel() ** -0.5


def test_tokens_at_one_position_are_independent() -> None:
    """Correlations of neighbours and of tokens far apart, of the noise and of its smallest values."""
    x = noise(seeds=torch.arange(40), positions=torch.arange(50).expand(40, -1), vocab_size=400).flatten(0, 1)  # [N, V]
    for y in (x, (x < 0.01).float(), (x > 3).float()):
        for offset in (1, 2, 7, 128):
            pairs = torch.stack([y[:, :-offset].flatten(), y[:, offset:].flatten()])
            assert torch.corrcoef(pairs)[0, 1].abs() < 5 * pairs.shape[1] ** -0.5


def test_the_smallest_of_many_tokens_is_any_of_them() -> None:
    """The winner of a flat distribution: each of 50 tokens as often as another."""
    counts = torch.bincount(draw_many(torch.zeros(50), temperature=1.0, top_p=1.0), minlength=50)
    assert chi_square_per_degree(counts, torch.full((50,), DRAWS / 50)) < 1.9


def test_neighbouring_draws_are_independent() -> None:
    """Pairs of draws at neighbouring positions fill their joint distribution."""
    probs = torch.tensor([0.5, 0.3, 0.2])
    drawn = draw_many(probs.log(), temperature=1.0, top_p=1.0).view(40, -1)
    pairs = torch.bincount((3 * drawn[:, :-1] + drawn[:, 1:]).flatten(), minlength=9)
    expected = torch.outer(probs, probs).flatten() * pairs.sum()
    assert chi_square_per_degree(pairs, expected) < 2.6


def test_noise_depends_on_nothing_but_its_key() -> None:
    seeds, positions = torch.tensor([3, -9]), torch.tensor([[5, 6], [1, 2]])
    both = noise(seeds=seeds, positions=positions, vocab_size=30)
    alone = noise(seeds=seeds[1:], positions=positions[1:, 1:], vocab_size=10)
    assert torch.equal(both[1:, 1:, :10], alone)
