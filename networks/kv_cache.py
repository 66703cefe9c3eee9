"""The KV cache of the autoregressive transformer, and attention over it.

Legend: S slots (sequences), Q query tokens per slot, L layers, P cache positions per slot, C model width, K key/value
heads, G query heads per key/value head, D head dimension, E context length (text tokens).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos_triton.networks.ar_config import ARConfig


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of every slot, contiguous per slot, written in place by the transformer.

    Positions past a slot's length may hold anything: the mask hides them, and they are overwritten before they are
    read.
    """

    k: Tensor  # [L, S, K, P, D]
    v: Tensor  # [L, S, K, P, D]
    cross_k: Tensor | None  # [L, S, K, E, D], of the slot's text
    cross_v: Tensor | None  # [L, S, K, E, D]

    @classmethod
    def allocate(
        cls,
        config: ARConfig,
        slots: int,
        *,
        window: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> KVCache:
        """A zeroed cache of `slots` clips.

        Args:
            window: the speculation window. The window of a clip's last step may reach `window - 1` positions past the
                end of the clip, and the cache has room for them.
        """

        def zeros(positions: int) -> Tensor:
            shape = (config.n_layers, slots, config.n_kv_heads, positions, config.head_dim)
            return torch.zeros(shape, device=device, dtype=dtype)

        cross_k = zeros(config.context_length) if config.is_video2world else None
        cross_v = zeros(config.context_length) if config.is_video2world else None
        positions = config.max_seq_len + window - 1
        return cls(zeros(positions), zeros(positions), cross_k, cross_v)

    def free_memory(self) -> None:
        """Free the storage and keep the tensors. `allocate_memory` must be called before the next use."""
        for tensor in self.tensors:
            if tensor is not None:
                tensor.untyped_storage().resize_(0)

    def allocate_memory(self) -> None:
        """Allocate and zero whatever storage `free_memory` freed; the tensor objects stay the same."""
        for tensor in self.tensors:
            if tensor is not None and not tensor.untyped_storage().nbytes():
                tensor.untyped_storage().resize_(tensor.nbytes)
                tensor.zero_()

    def layer(self, index: int) -> LayerCache:
        return LayerCache(*(None if t is None else t[index] for t in self.tensors))  # type: ignore[arg-type]

    def slot(self, index: int) -> KVCache:
        """The cache of one slot, as a view with S = 1."""
        return KVCache(*(None if t is None else t[:, index : index + 1] for t in self.tensors))  # type: ignore[arg-type]

    @property
    def max_kv_len(self) -> int:
        """P, the cache positions of a slot."""
        return self.k.shape[3]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.k, self.v, self.cross_k, self.cross_v


class LayerCache(NamedTuple):
    """One layer of a `KVCache`: the same tensors without the layer dimension."""

    k: Tensor  # [S, K, P, D]
    v: Tensor  # [S, K, P, D]
    cross_k: Tensor | None  # [S, K, E, D]
    cross_v: Tensor | None  # [S, K, E, D]

    def write(self, metadata: AttentionMetadata, k: Tensor, v: Tensor) -> None:
        """Store k and v [S, Q, K, D] at the positions of the query tokens."""
        self.k[metadata.slots, :, metadata.positions] = k
        self.v[metadata.slots, :, metadata.positions] = v


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where the query tokens of one forward are and what they may attend to; the same for all layers."""

    slots: Tensor  # [S, 1], slot of each sequence
    positions: Tensor  # [S, Q], cache position of each query token
    kv_len: int  # cache positions that are read
    mask: Tensor | None  # [S, 1, Q, kv_len], 0 or -inf, added to the scores; None where attention needs none
    cos: Tensor  # [S, Q, 1, D]
    sin: Tensor  # [S, Q, 1, D]
    abs_pos_emb: Tensor | None  # [S, Q, C]


CacheAttention = Callable[[Tensor, Tensor, Tensor, AttentionMetadata], Tensor]


def cache_attention(q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata) -> Tensor:
    """Causal grouped-query attention of the query tokens over the cache, each up to its own position.

    The query heads of a group are stacked along the query dimension, so keys and values are not repeated in memory.

    Args:
        q: [S, K, G, Q, D].
        k, v: [S, K, P, D], of which the first `metadata.kv_len` positions are read.

    Returns:
        [S, K, G, Q, D].
    """
    groups, query_len = q.shape[2:4]
    k, v = k[:, :, : metadata.kv_len], v[:, :, : metadata.kv_len]
    mask = metadata.mask
    if mask is None:  # Q equals kv_len; is_causal needs a square score matrix, so one call per query head of a group
        return torch.stack([F.scaled_dot_product_attention(x, k, v, is_causal=True) for x in q.unbind(2)], dim=2)
    mask = mask if query_len == 1 else mask.repeat(1, 1, groups, 1)  # [S, 1, G * Q, kv_len], or broadcast
    return F.scaled_dot_product_attention(q.flatten(2, 3), k, v, attn_mask=mask).unflatten(2, (groups, query_len))
