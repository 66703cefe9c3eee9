"""Hyper-parameters of the autoregressive transformers."""

from __future__ import annotations

from dataclasses import dataclass

from cosmos_triton.networks.ar_positions import TABLE_MULTIPLE, Yarn


@dataclass(frozen=True, slots=True)
class ARConfig:
    """Hyper-parameters of one released transformer.

    Args:
        latent_shape: (T, h, w) of the token grid of one clip.
        context_dim: width of the text embedding of a video2world model; None for a base model. A video2world model
            cross-attends to the text in every layer, adds an absolute position embedding before every layer, and starts
            with a begin-of-video token.
        context_length: text tokens of the embedding, padding included.

    Raises:
        ValueError: `n_heads` is not a multiple of `n_kv_heads`.
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
            raise ValueError(f"n_heads: value {self.n_heads}; accepted: multiples of n_kv_heads {self.n_kv_heads}")

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
        """The begin-of-video token: the first id that the model can read but not predict."""
        return self.vocab_size

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding matrix: the vocabulary, and for video2world begin, end and padding, rounded up."""
        return _round_up(self.vocab_size + 3) if self.is_video2world else self.vocab_size

    @property
    def max_seq_len(self) -> int:
        """Positions of a whole clip, rounded up: the length of the position tables."""
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
