"""The autoregressive transformer of the Cosmos world models, over an external KV cache.

One forward extends every slot of the cache by Q query tokens, each slot at its own position: Q is 1 in plain decoding,
the window in speculative decoding, and the chunk length in a prefill.

State-dict keys are those of the released model.pt without the leading `model.`.

Legend: S slots (sequences), Q query tokens per slot, L layers, P positions, C model width, H query heads, K key/value
heads, G = H / K, D head dimension, E context length (text tokens), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_triton.networks.ar_config import ARConfig
from cosmos_triton.networks.ar_positions import absolute_position_table, grid_coordinates, rope_tables, rotate
from cosmos_triton.networks.kv_cache import AttentionMetadata, CacheAttention, KVCache, LayerCache, cache_attention


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm in fp32, rounded to the input's dtype before the weight is applied."""
    x32 = x.float()
    squares = (x32 * x32).sum(dim=-1, keepdim=True)  # scaled below: a mean is two kernels on a CPU
    x32 = x32 * torch.rsqrt(torch.add(eps, squares, alpha=1 / x.shape[-1]))
    return x32.to(x.dtype) * weight


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Projections of grouped-query attention with QK-norm."""

    def __init__(self, config: ARConfig, kv_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.wq = nn.Linear(config.dim, self.heads * self.head_dim, bias=False)
        self.wk = nn.Linear(kv_dim, self.kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(kv_dim, self.kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(self.heads * self.head_dim, config.dim, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps)
        self.wqkv: Tensor | None = None  # [(H + 2 K) * D, C], set by fuse_projections
        self.qk_norm_weight: Tensor | None = None  # [H + K, D], likewise

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """QKV projection, QK-norm and RoPE: x [S, Q, C] -> q [S, K, G, Q, D], k and v [S, Q, K, D]."""
        if self.wqkv is None or self.qk_norm_weight is None:
            qkv, weight = torch.cat([self.wq(x), self.wk(x), self.wv(x)], dim=-1), self.concat_qk_norm_weights()
        else:
            qkv, weight = F.linear(x, self.wqkv), self.qk_norm_weight
        qk, v = self.split_heads(qkv).split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        qk = rotate(rms_norm(qk, weight, self.q_norm.eps), cos, sin)  # one kernel launch each for queries and keys
        q, k = qk.split((self.heads, self.kv_heads), dim=2)
        return self.group_heads(q), k, v

    def concat_qk_norm_weights(self) -> Tensor:
        """QK-norm weights of all query heads and all key heads, [H + K, D]."""
        return torch.cat([self.q_norm.weight.expand(self.heads, -1), self.k_norm.weight.expand(self.kv_heads, -1)])

    def split_heads(self, x: Tensor) -> Tensor:
        """[S, Q, heads * D] -> [S, Q, heads, D]"""
        return x.unflatten(-1, (-1, self.head_dim))

    def group_heads(self, q: Tensor) -> Tensor:
        """[S, Q, H, D] -> [S, K, G, Q, D]: query heads by the key/value head they share."""
        return q.unflatten(2, (self.kv_heads, -1)).permute(0, 2, 3, 1, 4)

    def project_output(self, out: Tensor) -> Tensor:
        """Output projection of an attention result [S, K, G, Q, D] -> [S, Q, C]."""
        return self.wo(merge_heads(out))


def merge_heads(out: Tensor) -> Tensor:
    """Attention result [S, K, G, Q, D] -> [S, Q, H * D]."""
    return out.permute(0, 3, 1, 2, 4).flatten(2)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)
        self.w13: Tensor | None = None  # [2 * hidden_dim, C], set by fuse_projections

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (self.w1(x), self.w3(x)) if self.w13 is None else F.linear(x, self.w13).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        self.attention = Attention(config, config.dim)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        if config.context_dim is not None:
            self.cross_attention = Attention(config, config.context_dim)
            self.cross_attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config.dim, config.ffn_dim)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, metadata: AttentionMetadata, cache: LayerCache, kernels: ARKernels) -> Tensor:
        """x [S, Q, C] -> [S, Q, C]; keys and values of the query tokens are written into the cache."""
        return kernels.layer(self, x, metadata, cache, kernels.attention)

    def forward_native(
        self, x: Tensor, metadata: AttentionMetadata, cache: LayerCache, attention: CacheAttention
    ) -> Tensor:
        """The layer in PyTorch operations."""
        if metadata.abs_pos_emb is not None:
            x = x + metadata.abs_pos_emb
        q, k, v = self.attention.project(self.attention_norm(x), metadata.cos, metadata.sin)
        cache.write(metadata, k, v)
        x = x + self.attention.project_output(attention(q, cache.k, cache.v, metadata))
        if cache.cross_k is not None and cache.cross_v is not None:
            x = x + self._attend_to_text(self.cross_attention_norm(x), cache.cross_k, cache.cross_v)
        return x + self.feed_forward(self.ffn_norm(x))

    def _attend_to_text(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Cross-attention of x [S, Q, C] to all E text positions, padding included; k and v [S, K, E, D]."""
        cross = self.cross_attention
        q = cross.group_heads(cross.q_norm(cross.split_heads(cross.wq(x))))
        out = F.scaled_dot_product_attention(q.flatten(2, 3), k, v)
        return cross.project_output(out.unflatten(2, q.shape[2:4]))


@dataclass(frozen=True, slots=True)
class ARKernels:
    """The implementation of a forward's hot operations. A device with kernels of its own has another instance.

    Args:
        layer: signature of `Layer.forward_native`, the layer first.
        attention: signature of `kv_cache.cache_attention`; `layer` is called with it.
        logits: signature of `native_logits`.
        max_maskless_query_len: up to this query length no mask is built: `attention` reads the positions instead.
    """

    layer: Callable[[Layer, Tensor, AttentionMetadata, LayerCache, CacheAttention], Tensor]
    attention: CacheAttention
    logits: Callable[[ARTransformer, Tensor], Tensor]
    max_maskless_query_len: int = 0


def native_logits(network: ARTransformer, hidden: Tensor) -> Tensor:
    """The final norm and the output projection, [S, Q, C] -> [S, Q, V]."""
    return network.output(network.norm(hidden))


NATIVE_KERNELS = ARKernels(Layer.forward_native, cache_attention, native_logits)


class ARTransformer(nn.Module):
    """The transformer. Kernels are passed to each forward: the module holds weights and position tables alone."""

    rope_cos: Tensor
    rope_sin: Tensor
    abs_pos_emb: Tensor | None

    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.embedding_rows, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

        rows, leading = config.max_seq_len, config.leading_tokens
        coordinates = grid_coordinates(config.latent_shape, leading_rows=leading, rows=rows)
        cos, sin = rope_tables(coordinates, config.head_dim, config.rope_theta, config.yarn)
        self.register_buffer("rope_cos", cos, persistent=False)  # [P, D]
        self.register_buffer("rope_sin", sin, persistent=False)
        table = None
        if config.is_video2world:
            table = absolute_position_table(config.latent_shape, config.dim, leading_rows=leading, rows=rows)
        self.register_buffer("abs_pos_emb", table, persistent=False)  # [P, C]

    def write_context(self, context: Tensor, cache: KVCache) -> None:
        """Compute the cross-attention keys and values of the text and store them in the cache, once per clip.

        Args:
            context: [S, E, context_dim] text embedding. The padding after the prompt (zero vectors) takes part in
                attention, as it did in training.
        """
        assert cache.cross_k is not None
        assert cache.cross_v is not None
        for index, layer in enumerate(self.layers):
            cross = cast(Layer, layer).cross_attention
            cache.cross_k[index] = cross.k_norm(cross.split_heads(cross.wk(context))).transpose(1, 2)
            cache.cross_v[index] = cross.split_heads(cross.wv(context)).transpose(1, 2)

    def forward(
        self, tokens: Tensor, starts: Tensor, cache: KVCache, *, kv_len: int, kernels: ARKernels = NATIVE_KERNELS
    ) -> Tensor:
        """Logits [S, Q, V] of the token after each of `tokens`; arguments as for `hidden_states`."""
        return kernels.logits(self, self.hidden_states(tokens, starts, cache, kv_len=kv_len, kernels=kernels))

    def hidden_states(
        self, tokens: Tensor, starts: Tensor, cache: KVCache, *, kv_len: int, kernels: ARKernels = NATIVE_KERNELS
    ) -> Tensor:
        """Hidden states [S, Q, C] after the last layer; keys and values of `tokens` are written into the cache.

        Args:
            tokens: [S, Q] ids.
            starts: [S] position of each slot's first query token.
            cache: holds the keys and values of all positions before `starts`.
            kv_len: cache positions to read, at least max(starts) + Q. If it equals Q, all `starts` must be 0.
        """
        query_len = tokens.shape[1]
        positions = starts[:, None] + torch.arange(query_len, device=starts.device)  # [S, Q]
        # A speculation window may reach past the clip. What is computed there is never used.
        in_table = positions.clamp(max=self.config.max_seq_len - 1)
        abs_pos_emb = None
        if self.abs_pos_emb is not None:
            abs_pos_emb = F.embedding(in_table, self.abs_pos_emb).to(self.rope_cos.dtype)
        needs_mask = query_len != kv_len and query_len > kernels.max_maskless_query_len
        metadata = AttentionMetadata(
            slots=torch.arange(len(positions), device=positions.device)[:, None],
            positions=positions,
            kv_len=kv_len,
            mask=self._causal_mask(positions, kv_len) if needs_mask else None,
            cos=F.embedding(in_table, self.rope_cos)[:, :, None],
            sin=F.embedding(in_table, self.rope_sin)[:, :, None],
            abs_pos_emb=abs_pos_emb,
        )
        x = self.tok_embeddings(tokens)  # [S, Q, C]
        for index, layer in enumerate(self.layers):
            x = layer(x, metadata, cache.layer(index), kernels)  # a module call: weight streaming hooks into it
        return x

    def _causal_mask(self, positions: Tensor, kv_len: int) -> Tensor:
        """[S, 1, Q, kv_len], added to attention scores: -inf at cache positions after a query token's own."""
        hidden = torch.arange(kv_len, device=positions.device) > positions[:, None, :, None]
        return torch.zeros_like(hidden, dtype=self.rope_cos.dtype).masked_fill_(hidden, float("-inf"))


def fuse_projections(network: ARTransformer) -> None:
    """Fuse the QKV projections and the gate and up projections of every layer into one GEMM each.

    The separate weights become views of the fused ones, so memory and state-dict keys stay the same. Idempotent.
    8-bit weights are left separate.
    """
    for layer in network.layers:
        attention, feed_forward = cast(Layer, layer).attention, cast(Layer, layer).feed_forward
        if attention.wqkv is not None or not isinstance(attention.wq, nn.Linear):
            continue
        attention.wqkv = _fuse(attention.wq, attention.wk, attention.wv)
        attention.qk_norm_weight = attention.concat_qk_norm_weights().detach()
        feed_forward.w13 = _fuse(feed_forward.w1, feed_forward.w3)


def _fuse(*projections: nn.Linear) -> Tensor:
    fused = torch.cat([projection.weight.data for projection in projections])
    for projection, part in zip(projections, fused.split([p.out_features for p in projections]), strict=True):
        projection.weight.data = part
    return fused
