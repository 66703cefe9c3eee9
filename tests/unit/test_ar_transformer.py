"""Invariants of the transformer's forward: however the tokens are cut into windows, the logits are the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cosmos_triton.networks.ar_transformer import ARTransformer, fuse_projections
from cosmos_triton.networks.kv_cache import KVCache
from support.tiny_models import AR_CONFIGS, random_context, random_tokens, random_transformer

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def new_cache(network: ARTransformer, slots: int = 1) -> KVCache:
    cache = KVCache.allocate(network.config, slots, window=8)
    context = random_context(network.config)
    if context is not None:
        network.read_context(context[None], cache.slot(0))
    return cache


def whole(network: ARTransformer, tokens: Tensor) -> Tensor:
    return network(tokens[None], torch.tensor([0]), new_cache(network), length=len(tokens))[0]


def in_windows(network: ARTransformer, tokens: Tensor, widths: list[int], *, length: int | None = None) -> Tensor:
    cache, logits, start = new_cache(network), [], 0
    for width in widths:
        window = tokens[start : start + width]
        logits.append(network(window[None], torch.tensor([start]), cache, length=length or start + width)[0])
        start += width
    return torch.cat(logits)


@pytest.fixture(params=AR_CONFIGS)
def network(request: pytest.FixtureRequest) -> ARTransformer:
    return random_transformer(AR_CONFIGS[request.param])


def test_prefill_equals_one_token_at_a_time(network: ARTransformer) -> None:
    tokens = random_tokens(network.config, network.config.clip_tokens)
    assert network.config.clip_tokens == 100
    steps = in_windows(network, tokens, [1] * 100)
    torch.testing.assert_close(whole(network, tokens), steps, **TOLERANCE)


def test_windows_across_latent_frame_edges_equal_one_token_at_a_time(network: ARTransformer) -> None:
    """A latent frame is 20 tokens: these windows start before, on and behind its edges."""
    tokens = random_tokens(network.config, 100)
    widths = [19, 2, 8, 8, 3, 1, 7, 8, 4, 40]
    steps = in_windows(network, tokens, [1] * 100)
    torch.testing.assert_close(in_windows(network, tokens, widths), steps, **TOLERANCE)


def test_rows_past_the_position_are_not_seen(network: ARTransformer) -> None:
    """Reading more of the cache than is filled, with rubbish in it, changes nothing."""
    tokens = random_tokens(network.config, 40)
    cache = new_cache(network)
    cache.k.normal_()
    cache.v.normal_()
    logits = network(tokens[None, :30], torch.tensor([0]), cache, length=cache.k.shape[3])[0]
    torch.testing.assert_close(logits, whole(network, tokens)[:30], **TOLERANCE)


def test_slots_at_different_positions_do_not_mix(network: ARTransformer) -> None:
    config = network.config
    sequences = [random_tokens(config, n, seed=n) for n in (7, 23, 41)]
    cache = KVCache.allocate(config, 3, window=4)
    for slot, sequence in enumerate(sequences):
        context = random_context(config, seed=slot)
        if context is not None:
            network.read_context(context[None], cache.slot(slot))
        network(sequence[None, :-4], torch.tensor([0]), cache.slot(slot), length=len(sequence) - 4)
    starts = torch.tensor([len(sequence) - 4 for sequence in sequences])
    together = network(torch.stack([sequence[-4:] for sequence in sequences]), starts, cache, length=64)
    for slot, sequence in enumerate(sequences):
        alone = KVCache.allocate(config, 1)
        context = random_context(config, seed=slot)
        if context is not None:
            network.read_context(context[None], alone)
        expected = network(sequence[None], torch.tensor([0]), alone, length=len(sequence))[0, -4:]
        torch.testing.assert_close(together[slot], expected, **TOLERANCE)


def test_fused_projections_share_memory_keep_the_keys_and_change_no_output(network: ARTransformer) -> None:
    tokens = random_tokens(network.config, 30)
    expected, keys = whole(network, tokens), {k: v.clone() for k, v in network.state_dict().items()}
    fuse_projections(network)
    torch.testing.assert_close(whole(network, tokens), expected, **TOLERANCE)
    fused = network.state_dict()
    assert fused.keys() == keys.keys()
    assert all(torch.equal(fused[key], keys[key]) for key in keys)
    attention = network.layers[0].attention
    assert attention.wq.weight.untyped_storage().data_ptr() == attention.fused.untyped_storage().data_ptr()
    before = attention.fused
    fuse_projections(network)
    assert attention.fused is before, "a captured graph may hold its address"
