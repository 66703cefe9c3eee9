"""The GPU decoder against the plain implementation. Runs where there is a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from test_ar_decoder import fill
from tiny_models import AR_CONFIGS, random_prompt, random_transformer
from torch import Tensor

from cosmos_triton.networks.ar_transformer import ARTransformer
from cosmos_triton.networks.kv_cache import Window, attend_to_cache
from cosmos_triton.runtime.ar_attention_cuda import attend_to_cache_cuda
from cosmos_triton.runtime.ar_cuda import CudaDecoder
from cosmos_triton.runtime.ar_engine import AREngine
from cosmos_triton.runtime.ar_linear_cuda import few_rows_linear


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


@pytest.mark.parametrize("rows", [1, 3, 16, 17])
@pytest.mark.parametrize("shape", [(6144, 4096), (4096, 14336), (28672, 4096), (64000, 5120), (192, 128), (100, 128)])
def test_products_of_few_rows_equal_torchs(shape: tuple[int, int], rows: int) -> None:
    """With many tiles, with few and so in splits, and with what no kernel is for."""
    generator = torch.Generator("cuda").manual_seed(rows)
    x = torch.randn(rows, 1, shape[1], device="cuda", generator=generator).bfloat16()
    weight = torch.randn(shape, device="cuda", generator=generator).bfloat16()
    in_8_bits = torch.randint(-127, 128, shape, device="cuda", generator=generator, dtype=torch.int8)
    for w in (weight, in_8_bits):
        out, expected = few_rows_linear(x, w).double(), F.linear(x.double(), w.double())
        assert ((out - expected).norm() / expected.norm()).item() < 3e-3


@pytest.mark.parametrize("shape", [(6144, 4096), (28672, 4096)])
def test_a_row_of_a_product_does_not_depend_on_the_others(shape: tuple[int, int]) -> None:
    x, weight = torch.randn(8, shape[1], device="cuda").bfloat16(), torch.randn(shape, device="cuda").bfloat16()
    together = few_rows_linear(x, weight)
    for row in range(8):
        elsewhere = torch.randn_like(x)
        elsewhere[7 - row] = x[row]
        assert torch.equal(few_rows_linear(elsewhere, weight)[7 - row], together[row])


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
