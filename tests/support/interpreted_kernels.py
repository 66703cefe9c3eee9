"""The GPU's kernels, interpreted on the CPU. `test_ar_kernels.py` runs this in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cosmos_triton.networks.ar_transformer import fuse_projections
from cosmos_triton.networks.int8 import AR_QUANTISED, quantise
from cosmos_triton.networks.kv_cache import KVCache
from cosmos_triton.runtime.ar.cuda_decoder import CUDA_KERNELS
from cosmos_triton.runtime.ar.sampling import draw, noise_key, token_keys
from cosmos_triton.runtime.ar.sampling_kernel import draw_cuda
from support.tiny_models import AR_CONFIGS, random_tokens, random_transformer


def copied(cache: KVCache) -> KVCache:
    return KVCache(*(None if tensor is None else tensor.clone() for tensor in cache.tensors))


def largest_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.inference_mode()
@pytest.mark.parametrize(("slots", "query_len"), [(1, 1), (3, 1), (2, 4), (17, 1), (3, 45)])
@pytest.mark.parametrize(("model", "eight_bit"), [("base_yarn", False), ("base", True), ("video2world", False)])
def test_forward_with_the_kernels_equals_the_native_forward(
    model: str, eight_bit: bool, slots: int, query_len: int
) -> None:
    """Logits and KV cache; M = 1, several slots, windows, several tiles, and M above the kernels' limit."""
    network = random_transformer(AR_CONFIGS[model])
    if eight_bit:
        quantise(network, AR_QUANTISED)
    fuse_projections(network)
    config = network.config
    cache = KVCache.allocate(config, slots, window=query_len)
    for tensor in cache.tensors:
        if tensor is not None:
            tensor.normal_(generator=torch.Generator().manual_seed(1))
    other = copied(cache)
    starts = 7 + 3 * torch.arange(slots)
    tokens = random_tokens(config, slots * query_len).view(slots, query_len)
    expected = network(tokens, starts, cache, kv_len=cache.max_kv_len)
    found = network(tokens, starts, other, kv_len=other.max_kv_len, kernels=CUDA_KERNELS)
    assert largest_error(found, expected) < 1e-5
    for ours, theirs in zip(other.tensors, cache.tensors, strict=True):
        if ours is not None and theirs is not None:
            assert largest_error(ours, theirs) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("vocab", [100, 9000])
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_draws_what_sorting_draws(vocab: int, scale: float, dtype: torch.dtype) -> None:
    """Flat and peaked distributions; bf16 has many ties. Nuclei of one token, a few, most and all."""
    generator = torch.Generator().manual_seed(0)
    top_p = torch.tensor([0.8, 0.3, 1.0, 0.0]).view(-1, 1, 1)
    temperature = torch.tensor([1.0, 0.7, 1.3, 1.0]).view(-1, 1, 1)
    logits = (scale * torch.randn(4, 3, vocab, generator=generator)).to(dtype)
    keys = torch.tensor([noise_key(seed) for seed in range(4)])
    positions = torch.randint(12800, (4, 3), generator=generator)
    noise = (keys, positions, token_keys(vocab))
    expected = draw(logits, *noise, temperature=temperature, top_p=top_p)
    assert torch.equal(draw_cuda(logits, *noise, temperature=temperature, top_p=top_p), expected)


@torch.inference_mode()
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_kernel_terminates_for_any_logits(value: float) -> None:
    """An idle slot has temperature 0; a broken network gives NaN or infinite logits."""
    logits = torch.full((2, 1, 100), value)
    noise = (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64), token_keys(100))
    temperature, top_p = torch.tensor([0.0, 1.0]).view(2, 1, 1), torch.tensor([0.0, 0.8]).view(2, 1, 1)
    drawn = draw_cuda(logits, *noise, temperature=temperature, top_p=top_p)
    assert ((drawn >= 0) & (drawn < 100)).all()
