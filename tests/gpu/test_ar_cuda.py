"""The GPU decoder against the plain implementation. Runs where there is a GPU."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import cast

import pytest
import torch
from torch import Tensor

from cosmos_triton.networks.ar_config import PRESETS
from cosmos_triton.networks.ar_transformer import ARTransformer, Layer, fuse_projections
from cosmos_triton.networks.int8 import AR_QUANTISED, quantise
from cosmos_triton.networks.kv_cache import AttentionMetadata, KVCache, cache_attention
from cosmos_triton.runtime.ar.attention_kernel import split_kv_attention
from cosmos_triton.runtime.ar.cuda_decoder import CUDA_KERNELS, CudaDecoder
from cosmos_triton.runtime.ar.engine import AREngine
from cosmos_triton.runtime.ar.layer_kernels import layer_forward
from cosmos_triton.runtime.ar.sampling import draw, noise_key, token_keys
from cosmos_triton.runtime.ar.sampling_kernel import draw_cuda
from cosmos_triton.runtime.residency import Placement, Residency
from cosmos_triton.runtime.stage_loader import place_ar_decoder
from support.decoding import fill
from support.tiny_models import AR_CONFIGS, random_request, random_transformer


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize(
    "shape", [(1, 8, 4, 1, 128, 12800), (3, 2, 2, 1, 24, 900), (3, 8, 4, 16, 128, 3000), (2, 1, 3, 64, 40, 700)]
)
def test_attention_equals_the_plain_one(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    slots, kv_heads, groups, query_len, dim, positions = shape
    generator = torch.Generator("cuda").manual_seed(0)
    q = torch.randn(slots, kv_heads, groups, query_len, dim, device="cuda", dtype=dtype, generator=generator)
    k, v = (
        torch.randn(slots, kv_heads, positions, dim, device="cuda", dtype=dtype, generator=generator) for _ in range(2)
    )
    starts = torch.randint(positions - query_len, (slots, 1), device="cuda", generator=generator)
    at = starts + torch.arange(query_len, device="cuda")
    hidden = torch.arange(positions, device="cuda") > at[:, None, :, None]
    mask = torch.zeros(hidden.shape, device="cuda", dtype=torch.float64).masked_fill_(hidden, float("-inf"))
    metadata = AttentionMetadata(
        slots=at[:, :1], positions=at, kv_len=positions, mask=mask, cos=q, sin=q, abs_pos_emb=None
    )
    expected = cache_attention(q.double(), k.double(), v.double(), metadata)
    out = split_kv_attention(q, k, v, metadata).double()
    assert ((out - expected).norm() / expected.norm()).item() < tolerance


@cache
def wide_network(eight_bit: bool) -> ARTransformer:
    """One layer of the released width, with cross attention."""
    network = random_transformer(replace(PRESETS["5b-video2world"], n_layers=1, vocab_size=1000))
    if eight_bit:
        quantise(network, AR_QUANTISED)
    return network.cuda()


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("slots", "query_len"), [(1, 1), (8, 1), (17, 1), (1, 16), (8, 16), (9, 16)])
@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_layer_of_full_width_is_the_plain_one(
    slots: int, query_len: int, eight_bit: bool, dtype: torch.dtype, tolerance: float
) -> None:
    """In the last case M is above the kernels' limit."""
    network = deepcopy(wide_network(eight_bit)).to(dtype)
    fuse_projections(network)
    cache = KVCache.allocate(network.config, slots, window=query_len, device="cuda", dtype=dtype)
    for tensor in cache.tensors:
        assert tensor is not None
        tensor.normal_()
    starts = torch.randint(2000, (slots,), device="cuda")
    tokens = torch.randint(1000, (slots, query_len), device="cuda")
    expected = network(tokens, starts, cache, kv_len=3000)
    found = network(tokens, starts, cache, kv_len=3000, kernels=CUDA_KERNELS)
    assert ((found - expected).float().norm() / expected.float().norm()).item() < tolerance


@torch.inference_mode()
@pytest.mark.parametrize("slots", [8, 100])
def test_a_row_does_not_depend_on_the_others(slots: int) -> None:
    config = replace(PRESETS["4b"], n_layers=1, vocab_size=1000)
    network = random_transformer(config).to("cuda", torch.bfloat16)
    fuse_projections(network)
    layer = cast(Layer, network.layers[0])
    cache = KVCache.allocate(replace(config, latent_shape=(1, 8, 8)), slots, device="cuda", dtype=torch.bfloat16)
    positions = torch.zeros(slots, 1, device="cuda", dtype=torch.int64)
    tables = torch.ones(slots, 1, 1, 128, device="cuda", dtype=torch.bfloat16)
    metadata = AttentionMetadata(
        slots=positions, positions=positions, kv_len=1, mask=None, cos=tables, sin=tables, abs_pos_emb=None
    )
    x = torch.randn(slots, 1, config.dim, device="cuda").bfloat16()
    together = layer_forward(layer, x, metadata, cache.layer(0), split_kv_attention)
    for slot in (0, 3, slots - 1):
        elsewhere = torch.randn_like(x)
        elsewhere[slots - 1 - slot] = x[slot]
        moved = layer_forward(layer, elsewhere, metadata, cache.layer(0), split_kv_attention)
        assert torch.equal(moved[slots - 1 - slot], together[slot])


@torch.inference_mode()
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_the_kernel_draws_what_sorting_draws(scale: float) -> None:
    """All draws but one in 512, where two scores are within rounding."""
    slots, window, vocab = 16, 32, 64000
    logits = (scale * torch.randn(slots, window, vocab)).bfloat16()
    top_p = torch.linspace(0, 1, slots).view(-1, 1, 1)
    temperature = torch.linspace(0.5, 1.5, slots).view(-1, 1, 1)
    keys = torch.tensor([noise_key(seed) for seed in range(slots)])
    noise = (keys, torch.arange(window).expand(slots, window), token_keys(vocab))
    expected = draw(logits, *noise, temperature=temperature, top_p=top_p)

    on_gpu = [tensor.cuda() for tensor in (logits, *noise)]
    drawn, again = (draw_cuda(*on_gpu, temperature=temperature.cuda(), top_p=top_p.cuda()) for _ in range(2))
    assert (drawn.cpu() != expected).sum() <= 1
    assert torch.equal(drawn, again)


@pytest.fixture(params=["base", "video2world_yarn"])
def network(request: pytest.FixtureRequest) -> ARTransformer:
    return random_transformer(AR_CONFIGS[request.param]).cuda()


def run(decoder: CudaDecoder, slots: int) -> list[Tensor]:
    for _ in range(decoder.clip_length):
        decoder.step()
    return [decoder.tokens(slot) for slot in range(slots)]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [1, 4])
def test_tokens_do_not_depend_on_neighbours(network: ARTransformer, dtype: torch.dtype, window: int) -> None:
    """Bitwise, in bf16 too: a step always has the same shapes."""
    network = network.to(dtype)
    decoder = CudaDecoder(network, 4, window=window)
    requests = [random_request(network.config, clip=i, seed=i) for i in range(4)]
    for slot, request in enumerate(requests):
        fill(decoder, slot, request)
    together = run(decoder, 4)
    for slot, request in enumerate(requests):
        for other in range(4):
            decoder.release(other)
        fill(decoder, (slot + 1) % 4, request)
        alone = run(decoder, 4)[(slot + 1) % 4]
        assert torch.equal(alone, together[slot])


def test_the_engine_serves_clips_one_step_ahead_of_the_gpu(network: ARTransformer) -> None:
    engine = AREngine(CudaDecoder(network, 3))
    requests = [random_request(network.config, clip=i, seed=i, frames=1 + i % 4) for i in range(7)]
    tokens = [engine.submit(request).future.result(60) for request in requests]
    sequences = [engine.submit(request) for request in requests]
    for sequence, expected in zip(sequences, tokens, strict=True):
        assert torch.equal(sequence.future.result(60), expected)
    engine.close(timeout=60)
    assert engine.stats().finished == 14


@torch.inference_mode()
@pytest.mark.parametrize("residency", ["offloaded", "streamed"])
@pytest.mark.parametrize("model", ["base", "video2world_yarn"])
def test_offloaded_weights_give_the_same_tokens(model: str, residency: Residency) -> None:
    request = random_request(AR_CONFIGS[model], clip=1, seed=1)
    resident = CudaDecoder(random_transformer(AR_CONFIGS[model]).to("cuda", torch.bfloat16), 1)
    fill(resident, 0, request)
    [expected] = run(resident, 1)

    placement = Placement("cuda", residency)
    decoder = place_ar_decoder(random_transformer(AR_CONFIGS[model]).bfloat16(), placement, slots=1)
    assert isinstance(decoder, CudaDecoder)
    for _ in range(2):
        with placement.on_device():
            fill(decoder, 0, request)
            [tokens] = run(decoder, 1)
        assert torch.equal(tokens, expected)
