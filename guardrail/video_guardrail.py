"""The guardrails that a video must pass before it is handed out."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cosmos_triton.guardrail.content_filter import ContentFilter, load_encoder
from cosmos_triton.guardrail.face_blur import Blurred, FaceBlur
from cosmos_triton.guardrail.judgement import Judgement
from cosmos_triton.guardrail.verdict import CHECK_SECONDS, Verdict, judged
from cosmos_triton.networks import retinaface, video_safety
from cosmos_triton.networks.retinaface import RetinaFace
from cosmos_triton.networks.video_safety import VideoSafety
from cosmos_triton.runtime import checkpoints as paths
from cosmos_triton.runtime.checkpoints import load_network
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.residency import Placement


class VideoGuardrail:
    """The content filter, then face blur: what the filter blocks is not looked at further."""

    def __init__(
        self, content_filter: ContentFilter, face_blur: FaceBlur, *, check_seconds: float = CHECK_SECONDS
    ) -> None:
        self.content_filter = content_filter
        self.face_blur = face_blur
        self.check_seconds = check_seconds

    @classmethod
    def load(cls, checkpoint_dir: Path, deployment: Deployment, placement: Placement) -> VideoGuardrail:
        """All networks in fp32, as released. A missing file raises."""
        device = placement.load_device
        encoder = load_encoder(checkpoint_dir / paths.VIDEO_SAFETY_ENCODER).to(device)
        head = load_network(
            VideoSafety,
            video_safety.PRESETS[deployment.video_safety],
            checkpoint_dir / paths.VIDEO_SAFETY,
            dtype=torch.float32,
            device=device,
        )
        detector = load_network(
            RetinaFace,
            retinaface.PRESETS[deployment.face_detector],
            checkpoint_dir / paths.FACE_DETECTOR,
            dtype=torch.float32,
            device=device,
        )
        placement.put(encoder, encoder.encoder.layers)
        return cls(ContentFilter(encoder, placement.put(head)), FaceBlur(placement.put(detector)))

    def apply(self, frames: Tensor) -> tuple[Tensor, Judgement]:
        """RGB uint8 frames [T, H, W, 3] -> the frames to hand out, black if blocked, and what was found in them."""
        result = Blurred(torch.zeros_like(frames), faces=0, with_faces=0)

        def blur() -> Verdict:
            nonlocal result
            blurred = self.face_blur.blur(frames)
            if (blurred.frames.shape, blurred.frames.dtype) != (frames.shape, frames.dtype):
                raise ValueError(f"the blurred frames are {blurred.frames.dtype} {tuple(blurred.frames.shape)}")
            result = blurred
            return Verdict.passed(self.face_blur.name)

        verdict = judged(
            self.content_filter.name, lambda: self.content_filter.judge(frames), seconds=self.check_seconds
        )
        verdicts = [verdict]
        if verdict.safe:
            verdicts.append(judged(self.face_blur.name, blur, seconds=self.check_seconds))
        return result.frames, Judgement(tuple(verdicts), result.facts())
