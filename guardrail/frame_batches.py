"""What the video guardrails have in common: the batch size, and the check of their input."""

from __future__ import annotations

import torch
from torch import Tensor

FRAMES_AT_ONCE = 8  # batch size of the networks


def check_frames(frames: Tensor) -> None:
    """Raises ValueError unless frames are RGB uint8 [T, H, W, 3] with at least one pixel."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.numel():
        raise ValueError(f"frames: {frames.dtype} {tuple(frames.shape)}, expected torch.uint8 [T, H, W, 3]")
