"""The guardrail that looks at every frame: SigLIP describes it, a small classifier names what it shows.

Legend: T frames, H, W pixels, S side of SigLIP's square input, K classes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SiglipVisionModel

from cosmos_triton.guardrail.frame_batches import FRAMES_AT_ONCE, check_frames
from cosmos_triton.guardrail.pretrained import load_whole
from cosmos_triton.guardrail.verdict import Verdict
from cosmos_triton.networks.video_safety import SAFE, ContentClassifierConfig
from cosmos_triton.runtime.backends.backend import Runnable


class ContentFilter:
    """A video is safe if every frame of it is. `batch_size` frames are in the network at a time."""

    name = "content_filter"

    def __init__(self, network: Runnable[ContentClassifierConfig], *, batch_size: int = FRAMES_AT_ONCE) -> None:
        self.network = network
        self.batch_size = batch_size

    def judge(self, frames: Tensor) -> Verdict:
        """RGB uint8 frames [T, H, W, 3]. Raises as `classify` does."""
        classes = self.network.config.classes
        for index, content in enumerate(self.classify(frames).tolist()):
            if content != SAFE:
                return Verdict.blocked(self.name, classes[content], reason=f"frame {index} shows {classes[content]}")
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
    """The vision half of a SigLIP folder; only safetensors are read, and nothing from the network.

    Raises:
        CheckpointError: the folder lacks a weight.
    """
    return load_whole(SiglipVisionModel, folder)


def to_network_input(frames: Tensor, side: int) -> Tensor:
    """Uint8 [T, H, W, 3] -> [T, 3, S, S] in -1..1: bicubic with antialiasing, as SigLIP's image processor resizes.

    That one rounds to bytes after the rows and again after the columns, which shows where the cubic overshoots.
    """
    pixels = frames.movedim(-1, 1).float()
    for size in ((frames.shape[1], side), (side, side)):
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).round().clamp(0, 255)
    return pixels / 127.5 - 1
