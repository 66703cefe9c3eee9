"""The same clip and seed give the same tokens: alone, in a batch, joining late, after a restart, and speculating."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from cosmos_triton.networks.ar_transformer import ARTransformer
from cosmos_triton.runtime.ar.decoder import KV_LEN_MULTIPLE, PREFILL_CHUNK, ARRequest, Decoder
from support.decoding import alone, fill, run
from support.paths import TESTS
from support.tiny_models import AR_CONFIGS, BASE, random_context, random_request, random_tokens, random_transformer

SEEDS = (0, 1, 2**62, -5)


@pytest.fixture(params=["base", "video2world_yarn"])
def network(request: pytest.FixtureRequest) -> ARTransformer:
    return random_transformer(AR_CONFIGS[request.param])


def test_a_clip_keeps_its_prompt_and_stays_in_the_vocabulary(network: ARTransformer) -> None:
    request = random_request(network.config)
    tokens = alone(network, request)
    assert tokens.shape == network.config.latent_shape
    assert torch.equal(tokens.flatten()[: len(request.prompt_tokens)], request.prompt_tokens)
    assert 0 <= tokens.min() <= tokens.max() < network.config.vocab_size
    assert len(tokens.unique()) > 10, "a constant clip would make the comparisons here vacuous"


def test_another_seed_or_clip_gives_other_tokens(network: ARTransformer) -> None:
    tokens = [alone(network, random_request(network.config, seed=seed)) for seed in SEEDS]
    tokens.append(alone(network, random_request(network.config, clip=1)))
    for i, one in enumerate(tokens):
        assert not any(torch.equal(one, other) for other in tokens[:i])


def test_tokens_do_not_depend_on_neighbours(network: ARTransformer) -> None:
    requests = [random_request(network.config, clip=i, seed=s, temperature=0.5 + i) for i, s in enumerate(SEEDS)]
    decoder = Decoder(network, 6)
    for slot, request in enumerate(requests):
        fill(decoder, slot, request)
    run(decoder)
    for slot, request in enumerate(requests):
        assert torch.equal(decoder.tokens(slot), alone(network, request))


def test_tokens_do_not_depend_on_when_a_clip_joins_or_a_neighbour_leaves(network: ARTransformer) -> None:
    first, second, third = (random_request(network.config, clip=i, seed=i) for i in range(3))
    decoder = Decoder(network, 2)
    fill(decoder, 0, first)
    for _ in range(11):
        decoder.step()
    fill(decoder, 1, second)
    for _ in range(7):
        decoder.step()
    decoder.release(0)  # the first is cancelled, and its slot given to the third
    decoder.step()
    fill(decoder, 0, third)
    run(decoder)
    assert torch.equal(decoder.tokens(1), alone(network, second))
    assert torch.equal(decoder.tokens(0), alone(network, third))


def test_steps_between_the_chunks_of_a_prefill_do_not_disturb_it(
    network: ARTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (random_request(network.config, clip=i, seed=i) for i in range(2))
    expected = alone(network, second)
    monkeypatch.setattr("cosmos_triton.runtime.ar.decoder.PREFILL_CHUNK", 7)
    decoder = Decoder(network, 2, window=4)
    fill(decoder, 0, first)
    for _ in decoder.prefill(1, second):
        decoder.step()
    run(decoder)
    assert torch.equal(decoder.tokens(1), expected)


def test_tokens_are_the_same_after_a_restart() -> None:
    """From another process, which shares nothing with this one."""
    program = (
        "from support.decoding import alone; from support.tiny_models import BASE, random_request, random_transformer; "
        "print(alone(random_transformer(BASE), random_request(BASE)).tolist())"
    )
    again = subprocess.run([sys.executable, "-c", program], cwd=TESTS, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout) == alone(random_transformer(BASE), random_request(BASE)).tolist()


def test_a_warm_up_leaves_nothing_behind(network: ARTransformer) -> None:
    decoder, request = Decoder(network, 2), random_request(network.config, seed=3)
    decoder.warm_up()
    assert decoder.read_num_tokens() == [1, 1]
    fill(decoder, 0, request)
    run(decoder)
    assert torch.equal(decoder.tokens(0), alone(network, request))


def test_a_prefill_in_chunks_gives_the_same_tokens(network: ARTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    request = random_request(network.config)
    assert len(request.prompt_tokens) < PREFILL_CHUNK
    expected = alone(network, request)
    monkeypatch.setattr("cosmos_triton.runtime.ar.decoder.PREFILL_CHUNK", 7)
    decoder = Decoder(network, 2)
    chunks = sum(1 for _ in decoder.prefill(1, request))
    assert chunks == -(-(len(request.prompt_tokens) + network.config.leading_tokens - 1) // 7)
    run(decoder)
    assert torch.equal(decoder.tokens(1), expected)


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("window", [2, 5, 16, 64])
def test_speculation_gives_the_tokens_of_plain_decoding(
    network: ARTransformer, window: int, temperature: float
) -> None:
    """Windows up to three latent frames long, which also reach past the clip's end."""
    requests = [random_request(network.config, clip=i, seed=s, temperature=temperature) for i, s in enumerate(SEEDS)]
    decoder = Decoder(network, len(requests), window=window)
    for slot, request in enumerate(requests):
        fill(decoder, slot, request)
    steps = run(decoder)
    if temperature > 0:  # a random network's most likely token depends on every token before it
        assert steps < 60, "nothing was ever accepted: drafts are not used"
    for slot, request in enumerate(requests):
        assert torch.equal(decoder.tokens(slot), alone(network, request))


@pytest.mark.parametrize("window", [1, 2, 16])
def test_a_step_reads_up_to_the_last_position_that_it_writes(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    network = random_transformer(BASE)
    request = random_request(BASE)
    expected = alone(network, request)
    monkeypatch.setattr("cosmos_triton.runtime.ar.decoder.KV_LEN_MULTIPLE", 1)
    decoder = Decoder(network, 1, window=window)
    for num_tokens in range(1, decoder.clip_length + 1):
        last = num_tokens - 1 + window - 1
        assert decoder.kv_len_for(num_tokens) == last + 1
    assert torch.equal(alone(network, request, window=window), expected)


def test_cache_lengths_are_multiples_and_end_with_the_cache() -> None:
    config = replace(BASE, latent_shape=(5, 12, 10))  # 600 tokens
    decoder = Decoder(random_transformer(config), 1)
    lengths = [decoder.kv_len_for(num_tokens) for num_tokens in range(1, decoder.clip_length + 1)]
    assert all(num_tokens <= length for num_tokens, length in enumerate(lengths, start=1))
    assert set(lengths) == {KV_LEN_MULTIPLE, 2 * KV_LEN_MULTIPLE, decoder.cache.max_kv_len}


def test_a_finished_slot_stays_as_it_is(network: ARTransformer) -> None:
    request = random_request(network.config)
    decoder = Decoder(network, 2, window=4)
    fill(decoder, 0, request)
    run(decoder)
    tokens = decoder.tokens(0)
    fill(decoder, 1, random_request(network.config, clip=1))
    run(decoder)
    assert torch.equal(decoder.tokens(0), tokens)


def test_plain_decoding_in_the_shape_of_a_window_is_identical_in_bf16() -> None:
    """bf16 rounds differently with another window. With the same shape, accepted drafts or none, nothing differs."""
    network = random_transformer(BASE).bfloat16()
    request = random_request(BASE)
    speculated = alone(network, request, window=16)
    decoder = Decoder(network, 1, window=16)
    fill(decoder, 0, request)
    while decoder.read_num_tokens()[0] < decoder.clip_length:
        num_tokens = decoder.num_tokens.clone()
        decoder.step()
        decoder.num_tokens.copy_(num_tokens + 1)  # accept one token a step, and discard the drafts
        decoder.token_ids[0, int(num_tokens) + 1 :] = 0
    assert torch.equal(decoder.tokens(0), speculated)


@pytest.mark.parametrize("count", [0, BASE.clip_tokens])
def test_a_prompt_that_leaves_nothing_to_draw_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"prompt has {count} tokens, accepted: 1 to 99"):
        Decoder(random_transformer(BASE), 1).validate(ARRequest(random_tokens(BASE, count)))


def test_a_context_of_the_wrong_kind_is_refused(network: ARTransformer) -> None:
    config = network.config
    other = AR_CONFIGS["base" if config.is_video2world else "video2world"]
    request = ARRequest(random_tokens(config, 20), context=random_context(other))
    with pytest.raises(ValueError, match="context has shape"):
        Decoder(network, 1).validate(request)
