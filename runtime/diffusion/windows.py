"""Cutting a token clip into the windows the diffusion decoder was trained on, and joining the decoded windows.

The released models decode 5 latent frames, which is one window completed by reflection. Longer clips follow the
reference: windows overlap by 2 latent frames but are joined over 2 pixel frames, so time is not aligned across a seam.

Legend: B batch, T frames, h, w token grid, H, W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 8  # latent frames; 57 pixel frames
OVERLAP = 2


def split_windows(tokens: Tensor) -> list[Tensor]:
    """Tokens [B, T, h, w] -> windows [B, 8, h, w]; a short last one is completed by reflection.

    Raises:
        ValueError: when the last window holds too few frames to reflect (3 or 4), as the reference does.
    """
    frames = tokens.shape[1]
    windows = []
    for start in range(0, max(frames - OVERLAP, 1), WINDOW - OVERLAP):
        window = tokens[:, start : start + WINDOW]
        have = window.shape[1]
        if 2 * have - 1 < WINDOW:
            raise ValueError(
                f"a clip of {frames} latent frames leaves {have} for its last window: at least {WINDOW // 2 + 1} needed"
            )
        reflected = [min(i, 2 * (have - 1) - i) for i in range(WINDOW)]
        windows.append(window[:, reflected])
    return windows


def join_windows(videos: list[Tensor], *, overlap: int = OVERLAP) -> Tensor:
    """Decoded windows [B, 3, T, H, W] -> one video, each seam a linear blend over `overlap` frames."""
    joined = videos[0]
    weight = torch.linspace(0, 1, overlap, device=joined.device).view(1, 1, overlap, 1, 1)
    for video in videos[1:]:
        seam = joined[:, :, -overlap:] * (1 - weight) + video[:, :, :overlap] * weight
        joined = torch.cat([joined[:, :, :-overlap], seam, video[:, :, overlap:]], dim=2)
    return joined
