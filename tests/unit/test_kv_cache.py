"""The KV cache's memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cosmos_triton.networks.kv_cache import KVCache
from support.tiny_models import AR_CONFIGS


@pytest.fixture(autouse=True)
def used_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory is never zero by chance: whatever torch allocates is full of NaN."""
    resize = torch.UntypedStorage.resize_

    def resize_and_fill(storage: torch.UntypedStorage, size: int) -> None:
        resize(storage, size)
        storage.fill_(255)

    monkeypatch.setattr(torch.UntypedStorage, "resize_", resize_and_fill)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", AR_CONFIGS)
def test_a_cache_is_zero_at_first_and_whenever_its_memory_is_allocated_again(name: str) -> None:
    """A masked key's value is multiplied by zero, and NaN times zero is NaN."""
    assert torch.empty(2).isnan().all()
    cache = KVCache.allocate(AR_CONFIGS[name], 2)
    tensors = [tensor for tensor in cache.tensors if tensor is not None]
    for _ in range(2):
        for tensor in tensors:
            assert torch.equal(tensor, torch.zeros(tensor.shape))
            tensor.fill_(1)
        cache.free_memory()
        cache.allocate_memory()


def test_memory_that_was_not_freed_keeps_its_content() -> None:
    cache = KVCache.allocate(AR_CONFIGS["base"], 1)
    cache.k.fill_(1)
    cache.allocate_memory()
    assert (cache.k == 1).all()
