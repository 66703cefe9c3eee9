"""How the video tokenizers run: video in chunks, the frames a request gives, and the scale of continuous latents.

Chunks are as long as the clips that the tokenizer was trained on. They know nothing of each other, and run one after
the other, so that memory does not grow with the video.

Legend: B batch, C latent channels, T frames, H height, W width; t, h, w latent grid. Pixels lie in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos_triton.networks.tokenizer import TokenizerConfig
from cosmos_triton.runtime.backends.backend import Runnable


@dataclass(frozen=True, slots=True)
class LatentStatistics:
    """Mean and standard deviation of continuous latents, by channel and frame of a chunk."""

    mean: Tensor  # [1, C, t, 1, 1]
    std: Tensor  # [1, C, t, 1, 1]

    @classmethod
    def from_vectors(cls, mean: Tensor, std: Tensor, config: TokenizerConfig) -> LatentStatistics:
        """From the two vectors of mean_std.pt: channel after channel, each for more frames than a chunk has."""
        frames = config.chunk_latents
        mean, std = (v.view(1, config.latent_channels, -1, 1, 1)[:, :, :frames] for v in (mean, std))
        return cls(mean, std)


@torch.inference_mode()
def encode_input_frames(encoder: Runnable[TokenizerConfig], frames: Tensor) -> Tensor:
    """Tokens [B, t, h, w] int32 of the frames that a clip starts with, [B, 3, T, H, W].

    They are the first tokens of every clip that starts so, however it goes on (to rounding: kernels may add up in
    another order): the encoder is causal. So nothing has to be padded to a whole chunk.

    Raises:
        ValueError: T is not 1 + a multiple of the temporal compression, or H or W not of the spatial one.
    """
    config = encoder.config
    _check_size(frames, config)
    if frames.shape[2] % config.temporal_compression != 1:
        raise ValueError(f"frames {frames.shape[2]} must be 1 + a multiple of {config.temporal_compression}")
    return encoder(frames.to(encoder.dtype))


@torch.inference_mode()
def decode_tokens(decoder: Runnable[TokenizerConfig], tokens: Tensor) -> Tensor:
    """Tokens [B, t, h, w], t a multiple of a chunk's -> video [B, 3, T, H, W], not clamped."""
    chunks = _chunks(tokens, decoder.config.chunk_latents, dim=1)
    return torch.cat([decoder(chunk) for chunk in chunks], dim=2)


@torch.inference_mode()
def decode_latents(
    decoder: Runnable[TokenizerConfig], latents: Tensor, statistics: LatentStatistics, *, sigma_data: float
) -> Tensor:
    """Latents [B, C, t, h, w], t a multiple of a chunk's -> video [B, 3, T, H, W], not clamped.

    The first latents of one chunk give its first frames: the decoder is causal. A graph takes whole chunks only.

    Args:
        sigma_data: standard deviation of `latents`: 1 for the encoder's own, 0.5 for a diffusion sample.
    """
    dtype, frames = decoder.dtype, latents.shape[2]
    mean, std = statistics.mean.to(dtype)[:, :, :frames], statistics.std.to(dtype)[:, :, :frames]
    chunks = _chunks((latents / sigma_data).to(dtype), min(decoder.config.chunk_latents, frames), dim=2)
    return torch.cat([decoder(chunk * std + mean) for chunk in chunks], dim=2)


def _chunks(x: Tensor, length: int, *, dim: int) -> tuple[Tensor, ...]:
    if x.shape[dim] == 0 or x.shape[dim] % length:
        raise ValueError(f"frames {x.shape[dim]} must be a multiple of the chunk, {length}")
    return x.split(length, dim=dim)


def _check_size(video: Tensor, config: TokenizerConfig) -> None:
    height, width = video.shape[-2:]
    if height % config.spatial_compression or width % config.spatial_compression:
        raise ValueError(f"size {height}x{width}: both must be multiples of {config.spatial_compression}")
