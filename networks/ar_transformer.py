"""The autoregressive transformer of the Cosmos-1.0 world models, over an external KV cache.

One forward advances every slot of the cache by a window of tokens, each slot at its own position. A window of one is
plain decoding; a longer one is a prefill, or drafted tokens to be verified.

State-dict keys are those of the released model.pt without the leading `model.`.

Legend: S slots, W window, L layers, P positions, C model width, H heads, K key/value heads, G = H / K,
D head dimension, E context length (text tokens), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_triton.networks.ar_positions import (
    TABLE_MULTIPLE,
    Yarn,
    absolute_position_table,
    grid_coordinates,
    rope_tables,
    rotate,
)
from cosmos_triton.networks.kv_cache import CacheAttention, KVCache, LayerCache, Window, attend_to_cache


@dataclass(frozen=True, slots=True)
class ARConfig:
    """Hyper-parameters of one released transformer.

    `context_dim` is the width of the text embedding, which has `context_length` rows. Models that have one are
    video2world models: they attend to the text in every layer, add an absolute position embedding before every layer,
    and start with a begin-of-video token.
    """

    n_layers: int
    dim: int
    ffn_dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    latent_shape: tuple[int, int, int]
    context_dim: int | None = None
    context_length: int = 512
    yarn: Yarn | None = None
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")

    @property
    def is_video2world(self) -> bool:
        return self.context_dim is not None

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.latent_shape[1] * self.latent_shape[2]

    @property
    def clip_tokens(self) -> int:
        """Tokens of one clip, without the begin-of-video token."""
        return self.latent_shape[0] * self.frame_tokens

    @property
    def leading_tokens(self) -> int:
        """Positions in front of the first video token: 1 for the begin-of-video token, or 0."""
        return int(self.is_video2world)

    @property
    def bov_token(self) -> int:
        """The begin-of-video token: the first id that the model can read but not write."""
        return self.vocab_size

    @property
    def embedding_rows(self) -> int:
        """Video tokens, and for video2world begin, end and padding, rounded up."""
        return _round_up(self.vocab_size + 3) if self.is_video2world else self.vocab_size

    @property
    def positions(self) -> int:
        """Rows of the KV cache and of the position tables."""
        return _round_up(self.leading_tokens + self.clip_tokens)


def _round_up(n: int) -> int:
    return -(-n // TABLE_MULTIPLE) * TABLE_MULTIPLE


_YARN = Yarn(scale=2, beta_fast=4, beta_slow=1, original_latent_shape=(3, 40, 64))


def _released(*, n_layers: int, dim: int, context_dim: int | None = None, yarn: Yarn | None = None) -> ARConfig:
    return ARConfig(
        n_layers=n_layers,
        dim=dim,
        ffn_dim=14336,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        vocab_size=64000,
        latent_shape=(5, 40, 64),
        context_dim=context_dim,
        yarn=yarn,
    )


def _tiny(*, context_dim: int | None = None) -> ARConfig:
    return ARConfig(
        n_layers=2,
        dim=64,
        ffn_dim=128,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        vocab_size=1000,
        latent_shape=(5, 10, 16),
        context_dim=context_dim,
    )


PRESETS: dict[str, ARConfig] = {
    "4b": _released(n_layers=16, dim=4096),
    "12b": _released(n_layers=40, dim=5120, yarn=_YARN),
    "5b-video2world": _released(n_layers=16, dim=4096, context_dim=1024),
    "13b-video2world": _released(n_layers=40, dim=5120, context_dim=1024, yarn=_YARN),
    "tiny": _tiny(),
    "tiny-video2world": _tiny(context_dim=32),
}


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
    """Projections of grouped-query attention, with normalised queries and keys."""

    def __init__(self, config: ARConfig, kv_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.wq = nn.Linear(config.dim, self.heads * self.head_dim, bias=False)
        self.wk = nn.Linear(kv_dim, self.kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(kv_dim, self.kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(self.heads * self.head_dim, config.dim, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps)
        self.fused: Tensor | None = None  # [(H + 2 K) * D, C], see fuse_projections
        self.qk_weight: Tensor | None = None  # [H + K, D], likewise

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [S, W, C] -> rotated q [S, K, G, W, D] and k, and v, [S, W, K, D] each."""
        if self.fused is None or self.qk_weight is None:
            out, weight = torch.cat([self.wq(x), self.wk(x), self.wv(x)], dim=-1), self.qk_norm_weight()
        else:
            out, weight = F.linear(x, self.fused), self.qk_weight
        qk, v = self.split(out).split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        qk = rotate(rms_norm(qk, weight, self.q_norm.eps), cos, sin)  # queries and keys in one go
        q, k = qk.split((self.heads, self.kv_heads), dim=2)
        return self.group(q), k, v

    def qk_norm_weight(self) -> Tensor:
        """Weight of the norm over queries and keys side by side, [H + K, D]."""
        return torch.cat([self.q_norm.weight.expand(self.heads, -1), self.k_norm.weight.expand(self.kv_heads, -1)])

    def split(self, x: Tensor) -> Tensor:
        """[S, W, heads * D] -> [S, W, heads, D]"""
        return x.unflatten(-1, (-1, self.head_dim))

    def group(self, q: Tensor) -> Tensor:
        """[S, W, H, D] -> [S, K, G, W, D], by the key/value head that serves each query."""
        return q.unflatten(2, (self.kv_heads, -1)).permute(0, 2, 3, 1, 4)

    def join(self, out: Tensor) -> Tensor:
        """Attention output [S, K, G, W, D] -> [S, W, C]."""
        return self.wo(out.permute(0, 3, 1, 2, 4).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)
        self.fused: Tensor | None = None  # [2 * hidden_dim, C], see fuse_projections

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (self.w1(x), self.w3(x)) if self.fused is None else F.linear(x, self.fused).chunk(2, dim=-1)
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

    def forward(self, x: Tensor, window: Window, cache: LayerCache, attend: CacheAttention) -> Tensor:
        if window.absolute is not None:
            x = x + window.absolute
        q, k, v = self.attention.project(self.attention_norm(x), window.cos, window.sin)
        cache.write(window, k, v)
        x = x + self.attention.join(attend(q, cache.k, cache.v, window))
        if cache.cross_k is not None and cache.cross_v is not None:
            x = x + self._cross_attention(self.cross_attention_norm(x), cache.cross_k, cache.cross_v)
        return x + self.feed_forward(self.ffn_norm(x))

    def _cross_attention(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """x [S, W, C] on all rows of the text, k and v [S, K, E, D]."""
        attention = self.cross_attention
        q = attention.group(attention.q_norm(attention.split(attention.wq(x))))
        out = F.scaled_dot_product_attention(q.flatten(2, 3), k, v)
        return attention.join(out.unflatten(2, q.shape[2:4]))


class ARTransformer(nn.Module):
    rope_cos: Tensor
    rope_sin: Tensor
    absolute: Tensor | None

    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.embedding_rows, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.attend: CacheAttention = attend_to_cache
        self.unmasked = 0  # the widest window for which `attend` needs no mask

        rows, leading = config.positions, config.leading_tokens
        coordinates = grid_coordinates(config.latent_shape, leading_rows=leading, rows=rows)
        cos, sin = rope_tables(coordinates, config.head_dim, config.rope_theta, config.yarn)
        self.register_buffer("rope_cos", cos, persistent=False)  # [P, D]
        self.register_buffer("rope_sin", sin, persistent=False)
        absolute = None
        if config.is_video2world:
            absolute = absolute_position_table(config.latent_shape, config.dim, leading_rows=leading, rows=rows)
        self.register_buffer("absolute", absolute, persistent=False)  # [P, C]

    def read_context(self, context: Tensor, cache: KVCache) -> None:
        """Write the keys and values of the text into the cache, once a clip.

        Args:
            context: [S, E, context_dim] embedding of the prompt. All rows take part, those past the prompt's end too:
                they are zero, and dilute the attention as they did in training.
        """
        assert cache.cross_k is not None
        assert cache.cross_v is not None
        for index, layer in enumerate(self.layers):
            cross = cast(Layer, layer).cross_attention
            cache.cross_k[index] = cross.k_norm(cross.split(cross.wk(context))).transpose(1, 2)
            cache.cross_v[index] = cross.split(cross.wv(context)).transpose(1, 2)

    def forward(self, tokens: Tensor, starts: Tensor, cache: KVCache, *, length: int) -> Tensor:
        """Logits [S, W, V] of the token that follows each of `tokens`; arguments as for `advance`."""
        return self.logits(self.advance(tokens, starts, cache, length=length))

    def logits(self, hidden: Tensor) -> Tensor:
        """[S, W, C] -> [S, W, V]."""
        return self.output(self.norm(hidden))

    def advance(self, tokens: Tensor, starts: Tensor, cache: KVCache, *, length: int) -> Tensor:
        """Write the keys and values of a window into the cache; returns its last hidden states [S, W, C].

        Args:
            tokens: [S, W] ids.
            starts: [S] position of each slot's first token in the window.
            cache: rows before `starts` hold the tokens so far.
            length: how many cache rows to read, at least max(starts) + W. When it is W, every slot starts at 0.
        """
        width = tokens.shape[1]
        rows = starts[:, None] + torch.arange(width, device=starts.device)  # [S, W]
        known = rows.clamp(max=self.config.positions - 1)  # a window may reach beyond the clip; nobody reads that part
        window = Window(
            slots=torch.arange(len(rows), device=rows.device)[:, None],
            rows=rows,
            length=length,
            mask=None if length == width or width <= self.unmasked else self._mask(rows, length),
            cos=F.embedding(known, self.rope_cos)[:, :, None],
            sin=F.embedding(known, self.rope_sin)[:, :, None],
            absolute=None if self.absolute is None else F.embedding(known, self.absolute).to(self.rope_cos.dtype),
        )
        x = self.tok_embeddings(tokens)  # [S, W, C]
        for index, layer in enumerate(self.layers):
            x = layer(x, window, cache.layer(index), self.attend)
        return x

    def _mask(self, rows: Tensor, length: int) -> Tensor:
        """[S, 1, W, length], added to attention scores: what stands behind a token's own row is hidden from it."""
        hidden = torch.arange(length, device=rows.device) > rows[:, None, :, None]
        return torch.zeros_like(hidden, dtype=self.rope_cos.dtype).masked_fill_(hidden, float("-inf"))


def fuse_projections(network: ARTransformer) -> None:
    """Lay the projections that share an input side by side in memory, so that one product computes them.

    The single weights become views of the fused ones: nothing is held twice, and the keys stay as they are. A second
    call does nothing, and 8-bit weights stay single.
    """
    for layer in network.layers:
        attention, feed_forward = cast(Layer, layer).attention, cast(Layer, layer).feed_forward
        if attention.fused is not None or not isinstance(attention.wq, nn.Linear):
            continue
        attention.fused = _fuse(attention.wq, attention.wk, attention.wv)
        attention.qk_weight = attention.qk_norm_weight().detach()
        feed_forward.fused = _fuse(feed_forward.w1, feed_forward.w3)


def _fuse(*projections: nn.Linear) -> Tensor:
    fused = torch.cat([projection.weight.data for projection in projections])
    for projection, part in zip(projections, fused.split([p.out_features for p in projections]), strict=True):
        projection.weight.data = part
    return fused
