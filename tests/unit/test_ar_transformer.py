"""Invariants of the transformer's forward: however the tokens are cut into chunks, the logits are the same."""

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
        network.write_context(context[None], cache.slot(0))
    return cache


def whole(network: ARTransformer, tokens: Tensor) -> Tensor:
    return network(tokens[None], torch.tensor([0]), new_cache(network), kv_len=len(tokens))[0]


def in_chunks(network: ARTransformer, tokens: Tensor, query_lens: list[int]) -> Tensor:
    cache, logits, start = new_cache(network), [], 0
    for query_len in query_lens:
        chunk = tokens[start : start + query_len]
        logits.append(network(chunk[None], torch.tensor([start]), cache, kv_len=start + query_len)[0])
        start += query_len
    return torch.cat(logits)


@pytest.fixture(params=AR_CONFIGS)
def network(request: pytest.FixtureRequest) -> ARTransformer:
    return random_transformer(AR_CONFIGS[request.param])


def test_prefill_equals_one_token_at_a_time(network: ARTransformer) -> None:
    tokens = random_tokens(network.config, network.config.clip_tokens)
    assert network.config.clip_tokens == 100
    steps = in_chunks(network, tokens, [1] * 100)
    torch.testing.assert_close(whole(network, tokens), steps, **TOLERANCE)


def test_chunks_across_latent_frame_edges_equal_one_token_at_a_time(network: ARTransformer) -> None:
    """A latent frame is 20 tokens: these chunks start before, on and after its edges."""
    tokens = random_tokens(network.config, 100)
    query_lens = [19, 2, 8, 8, 3, 1, 7, 8, 4, 40]
    steps = in_chunks(network, tokens, [1] * 100)
    torch.testing.assert_close(in_chunks(network, tokens, query_lens), steps, **TOLERANCE)


def test_cache_positions_past_a_slots_length_are_masked(network: ARTransformer) -> None:
    """Reading more of the cache than is filled, with garbage in it, changes nothing."""
    tokens = random_tokens(network.config, 40)
    cache = new_cache(network)
    cache.k.normal_()
    cache.v.normal_()
    logits = network(tokens[None, :30], torch.tensor([0]), cache, kv_len=cache.max_kv_len)[0]
    torch.testing.assert_close(logits, whole(network, tokens)[:30], **TOLERANCE)


def test_slots_at_different_positions_do_not_mix(network: ARTransformer) -> None:
    config = network.config
    sequences = [random_tokens(config, n, seed=n) for n in (7, 23, 41)]
    cache = KVCache.allocate(config, 3, window=4)
    for slot, sequence in enumerate(sequences):
        context = random_context(config, seed=slot)
        if context is not None:
            network.write_context(context[None], cache.slot(slot))
        network(sequence[None, :-4], torch.tensor([0]), cache.slot(slot), kv_len=len(sequence) - 4)
    starts = torch.tensor([len(sequence) - 4 for sequence in sequences])
    together = network(torch.stack([sequence[-4:] for sequence in sequences]), starts, cache, kv_len=64)
    for slot, sequence in enumerate(sequences):
        alone = KVCache.allocate(config, 1)
        context = random_context(config, seed=slot)
        if context is not None:
            network.write_context(context[None], alone)
        expected = network(sequence[None], torch.tensor([0]), alone, kv_len=len(sequence))[0, -4:]
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
    assert attention.wq.weight.untyped_storage().data_ptr() == attention.wqkv.untyped_storage().data_ptr()
    before = attention.wqkv
    fuse_projections(network)
    assert attention.wqkv is before, "a captured graph may hold its address"
