"""The content filter: every frame is classified by a small MLP on its SigLIP embedding.

Legend: T frames, H, W pixels, S side of SigLIP's square input, K classes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SiglipVisionModel

from cosmos_triton.guardrail.frame_batches import FRAMES_AT_ONCE, check_frames
from cosmos_triton.guardrail.pretrained import load_pretrained
from cosmos_triton.guardrail.verdict import Verdict
from cosmos_triton.networks.video_safety import SAFE, ContentClassifierConfig
from cosmos_triton.runtime.backends.backend import Runnable


class ContentFilter:
    """Blocks a video if any of its frames is not of class Safe. Frames go through the network in batches."""

    name = "content_filter"

    def __init__(self, network: Runnable[ContentClassifierConfig], *, batch_size: int = FRAMES_AT_ONCE) -> None:
        self.network = network
        self.batch_size = batch_size

    def judge(self, frames: Tensor) -> Verdict:
        """The verdict on RGB uint8 frames [T, H, W, 3]; raises as `classify` does."""
        classes = self.network.config.classes
        for frame, label in enumerate(self.classify(frames).tolist()):
            if label != SAFE:
                return Verdict.blocked(self.name, classes[label], reason=f"frame {frame} shows {classes[label]}")
        return Verdict.passed(self.name)

    @torch.inference_mode()
    def classify(self, frames: Tensor) -> Tensor:
        """RGB uint8 frames [T, H, W, 3] -> class of each, [T].

        Raises:
            ValueError: the frames have another shape or dtype, or a logit is not finite.
        """
        check_frames(frames)
        logits = []
        for batch in frames.split(self.batch_size):
            pixels = to_network_input(batch.to(self.network.device), self.network.config.image_size)
            logits.append(self.network(pixels.to(self.network.dtype)))
        joined = torch.cat(logits)  # [T, K]
        if joined.shape != (len(frames), len(self.network.config.classes)):
            raise ValueError(f"the content classifier's logits are {tuple(joined.shape)} of {len(frames)} frames")
        if not joined.isfinite().all():
            raise ValueError("the content classifier's logits are not finite")
        return joined.argmax(-1)


def load_encoder(folder: Path) -> SiglipVisionModel:
    """The vision tower of a SigLIP folder; raises as `load_pretrained` does."""
    return load_pretrained(SiglipVisionModel, folder)


def to_network_input(frames: Tensor, side: int) -> Tensor:
    """uint8 [T, H, W, 3] -> [T, 3, S, S] in [-1, 1], resized as SigLIP's image processor does.

    That is Pillow's bicubic with antialiasing, one axis after the other. It rounds to bytes after each, which makes a
    difference where the cubic overshoots.
    """
    pixels = frames.movedim(-1, 1).float()
    for size in ((frames.shape[1], side), (side, side)):
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).round().clamp(0, 255)
    return pixels / 127.5 - 1
