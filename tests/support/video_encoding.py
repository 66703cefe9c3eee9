"""The tokenizers' encoders over whole videos. The product encodes a clip's input frames only."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_triton.networks.tokenizer import TokenizerConfig
from cosmos_triton.runtime.backends.backend import Runnable
from cosmos_triton.runtime.video_tokenizer import LatentStatistics, _check_size, _chunks


@torch.inference_mode()
def encode_tokens(encoder: Runnable[TokenizerConfig], video: Tensor) -> Tensor:
    """Video [B, 3, T, H, W], T a multiple of the chunk -> tokens [B, t, h, w] int32."""
    _check_size(video, encoder.config)
    chunks = _chunks(video.to(encoder.dtype), encoder.config.chunk_frames, dim=2)
    return torch.cat([encoder(chunk) for chunk in chunks], dim=1)


@torch.inference_mode()
def encode_latents(encoder: Runnable[TokenizerConfig], video: Tensor, statistics: LatentStatistics) -> Tensor:
    """Video [B, 3, T, H, W], T a multiple of the chunk -> latents [B, C, t, h, w] of unit variance."""
    _check_size(video, encoder.config)
    dtype = encoder.dtype
    mean, std = statistics.mean.to(dtype), statistics.std.to(dtype)
    chunks = _chunks(video.to(dtype), encoder.config.chunk_frames, dim=2)
    return torch.cat([(encoder(chunk) - mean) / std for chunk in chunks], dim=2)
