"""The GPU decoder against the plain implementation. Runs where there is a GPU."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import cast

import pytest
import torch
from torch import Tensor

from cosmos_triton.networks.ar_transformer import PRESETS, ARTransformer, Layer, fuse_projections
from cosmos_triton.networks.kv_cache import KVCache, Window, attend_to_cache
from cosmos_triton.runtime.ar.attention_kernel import attend_to_cache_cuda
from cosmos_triton.runtime.ar.cuda_decoder import CudaDecoder, use_kernels
from cosmos_triton.runtime.ar.engine import AREngine
from cosmos_triton.runtime.ar.layer_kernels import layer_forward
from cosmos_triton.runtime.ar.sampling import draw, noise_key, token_keys
from cosmos_triton.runtime.ar.sampling_kernel import draw_cuda
from cosmos_triton.runtime.int8 import AR_PARTS, quantise
from cosmos_triton.runtime.residency import Placement, Residency
from cosmos_triton.runtime.stage_loader import place_ar_decoder
from support.decoding import fill
from support.tiny_models import AR_CONFIGS, random_prompt, random_transformer


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize(
    "shape", [(1, 8, 4, 1, 128, 12800), (3, 2, 2, 1, 24, 900), (3, 8, 4, 16, 128, 3000), (2, 1, 3, 64, 40, 700)]
)
def test_attention_equals_the_plain_one(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    slots, kv_heads, groups, width, dim, rows = shape
    generator = torch.Generator("cuda").manual_seed(0)
    q = torch.randn(slots, kv_heads, groups, width, dim, device="cuda", dtype=dtype, generator=generator)
    k, v = (torch.randn(slots, kv_heads, rows, dim, device="cuda", dtype=dtype, generator=generator) for _ in range(2))
    starts = torch.randint(rows - width, (slots, 1), device="cuda", generator=generator)
    at = starts + torch.arange(width, device="cuda")
    hidden = torch.arange(rows, device="cuda") > at[:, None, :, None]
    mask = torch.zeros(hidden.shape, device="cuda", dtype=torch.float64).masked_fill_(hidden, float("-inf"))
    window = Window(slots=at[:, :1], rows=at, length=rows, mask=mask, cos=q, sin=q, absolute=None)
    expected = attend_to_cache(q.double(), k.double(), v.double(), window)
    out = attend_to_cache_cuda(q, k, v, window).double()
    assert ((out - expected).norm() / expected.norm()).item() < tolerance


@cache
def wide_network(eight_bit: bool) -> ARTransformer:
    """One layer of the released width, with cross attention."""
    network = random_transformer(replace(PRESETS["5b-video2world"], n_layers=1, vocab_size=1000))
    if eight_bit:
        quantise(network, AR_PARTS)
    return network.cuda()


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("slots", "width"), [(1, 1), (8, 1), (17, 1), (1, 16), (8, 16), (9, 16)])
@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_layer_of_full_width_is_the_plain_one(
    slots: int, width: int, eight_bit: bool, dtype: torch.dtype, tolerance: float
) -> None:
    """The last of them has too many rows for the kernels."""
    network = deepcopy(wide_network(eight_bit)).to(dtype)
    fuse_projections(network)
    cache = KVCache.allocate(network.config, slots, window=width, device="cuda", dtype=dtype)
    for tensor in cache.tensors:
        assert tensor is not None
        tensor.normal_()
    starts = torch.randint(2000, (slots,), device="cuda")
    tokens = torch.randint(1000, (slots, width), device="cuda")
    expected = network(tokens, starts, cache, length=3000)
    use_kernels(network)
    found = network(tokens, starts, cache, length=3000)
    assert ((found - expected).float().norm() / expected.float().norm()).item() < tolerance


@torch.inference_mode()
@pytest.mark.parametrize("slots", [8, 100])
def test_a_row_does_not_depend_on_the_others(slots: int) -> None:
    config = replace(PRESETS["4b"], n_layers=1, vocab_size=1000)
    network = random_transformer(config).to("cuda", torch.bfloat16)
    fuse_projections(network)
    layer = layer_forward(cast(Layer, network.layers[0]))
    cache = KVCache.allocate(replace(config, latent_shape=(1, 8, 8)), slots, device="cuda", dtype=torch.bfloat16)
    rows = torch.zeros(slots, 1, device="cuda", dtype=torch.int64)
    tables = torch.ones(slots, 1, 1, 128, device="cuda", dtype=torch.bfloat16)
    window = Window(slots=rows, rows=rows, length=1, mask=None, cos=tables, sin=tables, absolute=None)
    x = torch.randn(slots, 1, config.dim, device="cuda").bfloat16()
    together = layer(x, window, cache.layer(0), attend_to_cache_cuda)
    for slot in (0, 3, slots - 1):
        elsewhere = torch.randn_like(x)
        elsewhere[slots - 1 - slot] = x[slot]
        moved = layer(elsewhere, window, cache.layer(0), attend_to_cache_cuda)
        assert torch.equal(moved[slots - 1 - slot], together[slot])


@torch.inference_mode()
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_the_kernel_draws_what_sorting_draws(scale: float) -> None:
    """Every draw but one in a thousand, where two are as near as rounding."""
    slots, width, vocab = 16, 32, 64000
    logits = (scale * torch.randn(slots, width, vocab)).bfloat16()
    top_p = torch.linspace(0, 1, slots).view(-1, 1, 1)
    temperature = torch.linspace(0.5, 1.5, slots).view(-1, 1, 1)
    keys = torch.tensor([noise_key(seed) for seed in range(slots)])
    place = (keys, torch.arange(width).expand(slots, width), token_keys(vocab))
    expected = draw(logits, *place, temperature=temperature, top_p=top_p)

    on_gpu = [tensor.cuda() for tensor in (logits, *place)]
    drawn, again = (draw_cuda(*on_gpu, temperature=temperature.cuda(), top_p=top_p.cuda()) for _ in range(2))
    assert (drawn.cpu() != expected).sum() <= 1
    assert torch.equal(drawn, again)


@pytest.fixture(params=["base", "video2world_yarn"])
def network(request: pytest.FixtureRequest) -> ARTransformer:
    return random_transformer(AR_CONFIGS[request.param]).cuda()


def run(decoder: CudaDecoder, slots: int, *, window: int = 1) -> list[Tensor]:
    for _ in range(decoder.clip_length):
        decoder.step(window)
    return [decoder.tokens(slot) for slot in range(slots)]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [1, 4])
def test_tokens_do_not_depend_on_neighbours(network: ARTransformer, dtype: torch.dtype, window: int) -> None:
    """Equal to the bit, in bf16 too: the shapes of a step are always the same."""
    network = network.to(dtype)
    decoder = CudaDecoder(network, 4, windows=(1, window))
    prompts = [random_prompt(network.config, clip=i, seed=i) for i in range(4)]
    for slot, prompt in enumerate(prompts):
        fill(decoder, slot, prompt)
    together = run(decoder, 4, window=window)
    for slot, prompt in enumerate(prompts):
        for other in range(4):
            decoder.release(other)
        fill(decoder, (slot + 1) % 4, prompt)
        alone = run(decoder, 4, window=window)[(slot + 1) % 4]
        assert torch.equal(alone, together[slot])


def test_the_engine_serves_clips_one_step_ahead_of_the_gpu(network: ARTransformer) -> None:
    engine = AREngine(CudaDecoder(network, 3))
    prompts = [random_prompt(network.config, clip=i, seed=i, frames=1 + i % 4) for i in range(7)]
    tokens = [engine.submit(prompt).future.result(60) for prompt in prompts]
    requests = [engine.submit(prompt) for prompt in prompts]
    for request, expected in zip(requests, tokens, strict=True):
        assert torch.equal(request.future.result(60), expected)
    engine.close(timeout=60)
    assert engine.stats().finished == 14


@torch.inference_mode()
@pytest.mark.parametrize("residency", ["offloaded", "streamed"])
@pytest.mark.parametrize("model", ["base", "video2world_yarn"])
def test_weights_that_come_and_go_give_the_same_tokens(model: str, residency: Residency) -> None:
    prompt = random_prompt(AR_CONFIGS[model], clip=1, seed=1)
    resident = CudaDecoder(random_transformer(AR_CONFIGS[model]).to("cuda", torch.bfloat16), 1)
    fill(resident, 0, prompt)
    [expected] = run(resident, 1)

    placement = Placement("cuda", residency)
    decoder = place_ar_decoder(random_transformer(AR_CONFIGS[model]).bfloat16(), placement, slots=1)
    assert isinstance(decoder, CudaDecoder)
    for _ in range(2):
        with placement.at_work():
            fill(decoder, 0, prompt)
            [tokens] = run(decoder, 1)
        assert torch.equal(tokens, expected)
