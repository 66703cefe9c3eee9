"""The GPU's kernels where there is no GPU: interpreted, and compiled for GPUs that are elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("test_ar_cuda.py runs them here", allow_module_level=True)

from tiny_models import AR_CONFIGS, random_tokens, random_transformer
from torch import Tensor

from cosmos_triton.networks.ar_transformer import ARTransformer, fuse_projections
from cosmos_triton.networks.kv_cache import KVCache
from cosmos_triton.runtime.int8 import AR_PARTS, quantise

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")  # read where a kernel is defined
    from cosmos_triton.runtime.ar_attention_cuda import MAX_WINDOW, attend_to_cache_cuda
    from cosmos_triton.runtime.ar_layer_cuda import layer_forward, logits

SHARED_LIMITS = {89: 99 * 1024, 90: 227 * 1024}  # bytes a program may have
STACK_LIMIT = 64


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read again by what a kernel's first run imports


def with_kernels(network: ARTransformer) -> ARTransformer:
    """As CudaDecoder prepares it."""
    network.attend, network.unmasked = attend_to_cache_cuda, MAX_WINDOW
    network.logits = partial(logits, network)  # type: ignore[method-assign]
    for layer in network.layers:
        layer.forward = layer_forward(layer)  # type: ignore[arg-type]
    return network


def copied(cache: KVCache) -> KVCache:
    return KVCache(*(None if tensor is None else tensor.clone() for tensor in cache.tensors))


def largest_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.inference_mode()
@pytest.mark.parametrize(("slots", "width"), [(1, 1), (3, 1), (2, 4), (17, 1)])
@pytest.mark.parametrize(("model", "eight_bit"), [("base_yarn", False), ("base", True), ("video2world", False)])
def test_a_step_through_the_kernels_is_a_step(model: str, eight_bit: bool, slots: int, width: int) -> None:
    """Logits, and what is written into the cache; one row, several slots, windows, and several blocks of rows."""
    network = random_transformer(AR_CONFIGS[model])
    if eight_bit:
        quantise(network, AR_PARTS)
    fuse_projections(network)
    config = network.config
    cache = KVCache.allocate(config, slots, window=width)
    for tensor in cache.tensors:
        if tensor is not None:
            tensor.normal_(generator=torch.Generator().manual_seed(1))
    other = copied(cache)
    starts = 7 + 3 * torch.arange(slots)
    tokens = random_tokens(config, slots * width).view(slots, width)
    expected = network(tokens, starts, cache, length=cache.k.shape[3])
    found = with_kernels(network)(tokens, starts, other, length=other.k.shape[3])
    assert largest_error(found, expected) < 1e-5
    for ours, theirs in zip(other.tensors, cache.tensors, strict=True):
        if ours is not None and theirs is not None:
            assert largest_error(ours, theirs) < 1e-5


def test_every_kernel_fits_the_gpus_with_the_least_shared_memory() -> None:
    """Compiled at the width of the largest model; what does not fit would fail at its first launch."""
    program = Path(__file__).with_name("compiled_kernels.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    kernels = json.loads(run.stdout)
    assert len(kernels) == 2 * 15
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_LIMITS[kernel["capability"]], kernel
        assert kernel["stack"] <= STACK_LIMIT, kernel
