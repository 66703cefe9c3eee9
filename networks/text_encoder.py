"""The text encoder: the encoder half of T5 (arXiv 1910.10683), as transformers implements it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import T5Config, T5EncoderModel


@dataclass(frozen=True, slots=True)
class TextEncoderConfig:
    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    head_dim: int
    ffn_dim: int


PRESETS: dict[str, TextEncoderConfig] = {
    "t5-11b": TextEncoderConfig(vocab_size=32128, dim=1024, n_layers=24, n_heads=128, head_dim=128, ffn_dim=65536),
    "tiny": TextEncoderConfig(vocab_size=512, dim=32, n_layers=2, n_heads=4, head_dim=8, ffn_dim=64),
}


class TextEncoder(T5EncoderModel):  # type: ignore[misc]  # transformers has no types
    """transformers' T5 encoder, with tensors in and a tensor out."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids [B, E] and their mask [B, E] -> hidden states [B, E, C]; undefined where the mask is 0.

        Without a mask no token is padding.
        """
        return super().forward(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def t5_config(config: TextEncoderConfig) -> T5Config:
    return T5Config(
        vocab_size=config.vocab_size,
        d_model=config.dim,
        d_kv=config.head_dim,
        d_ff=config.ffn_dim,
        num_layers=config.n_layers,
        num_heads=config.n_heads,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="relu",
        pad_token_id=0,
        eos_token_id=1,
    )


def build_text_encoder(config: TextEncoderConfig) -> TextEncoder:
    return TextEncoder(t5_config(config)).eval()
