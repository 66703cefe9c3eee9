"""The KV cache of the autoregressive transformer, and attention on it.

Legend: S slots, W window, L layers, P cache rows, C model width, K key/value heads, G query heads for each of them,
D head dimension, E context length (text tokens).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from cosmos_triton.networks.ar_transformer import ARConfig


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of every slot, written in place by the transformer.

    Rows past a slot's position may hold anything: the mask hides them, and they are overwritten before they are read.
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
        """`window` is the longest that will be forwarded past the prompt: it may reach beyond the clip's end."""

        def zeros(rows: int) -> Tensor:
            shape = (config.n_layers, slots, config.n_kv_heads, rows, config.head_dim)
            return torch.zeros(shape, device=device, dtype=dtype)

        cross_k = zeros(config.context_length) if config.is_video2world else None
        cross_v = zeros(config.context_length) if config.is_video2world else None
        rows = config.positions + window - 1
        return cls(zeros(rows), zeros(rows), cross_k, cross_v)

    def free_memory(self) -> None:
        """Give the device its memory back; before the cache is used again, `allocate_memory` must have been called."""
        for tensor in self.tensors:
            if tensor is not None:
                tensor.untyped_storage().resize_(0)

    def allocate_memory(self) -> None:
        """Have memory, with zeros in it where there was none; the tensors are the same ones."""
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
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.k, self.v, self.cross_k, self.cross_v


class LayerCache(NamedTuple):
    """One layer of a `KVCache`: the same tensors without their first dimension."""

    k: Tensor  # [S, K, P, D]
    v: Tensor  # [S, K, P, D]
    cross_k: Tensor | None  # [S, K, E, D]
    cross_v: Tensor | None  # [S, K, E, D]

    def write(self, window: Window, k: Tensor, v: Tensor) -> None:
        """Put k and v [S, W, K, D] at the window's rows of each slot."""
        self.k[window.slots, :, window.rows] = k
        self.v[window.slots, :, window.rows] = v


@dataclass(frozen=True, slots=True)
class Window:
    """What all layers share in one forward: where the tokens are, and what they may see."""

    slots: Tensor  # [S, 1], their numbers
    rows: Tensor  # [S, W], cache row of each token
    length: int  # rows of the cache that are read
    mask: (
        Tensor | None
    )  # [S, 1, W, length], 0 where a token sees a row, else -inf; None when the window is all there is
    cos: Tensor  # [S, W, 1, D]
    sin: Tensor  # [S, W, 1, D]
    absolute: Tensor | None  # [S, W, C]


CacheAttention = Callable[[Tensor, Tensor, Tensor, Window], Tensor]


def attend_to_cache(q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
    """Causal attention of a window on the cache rows up to each token's own.

    The queries of a group stand one below another as rows of one attention, so keys and values are never repeated.

    Args:
        q: [S, K, G, W, D].
        k, v: [S, K, P, D], of which `window.length` rows are read.

    Returns:
        [S, K, G, W, D].
    """
    groups, width = q.shape[2:4]
    k, v = k[:, :, : window.length], v[:, :, : window.length]
    if window.mask is None:  # one call for each query of a group
        return torch.stack([F.scaled_dot_product_attention(x, k, v, is_causal=True) for x in q.unbind(2)], dim=2)
    mask = window.mask if width == 1 else window.mask.repeat(1, 1, groups, 1)  # [S, 1, G * W, length], or broadcast
    return F.scaled_dot_product_attention(q.flatten(2, 3), k, v, attn_mask=mask).unflatten(2, (groups, width))
