"""The guardrails that a video must pass before it is handed out."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import SiglipVisionConfig

from cosmos_triton.guardrail.content_filter import ContentFilter, load_encoder
from cosmos_triton.guardrail.face_blur import Blurred, FaceBlur
from cosmos_triton.guardrail.judgement import Judgement
from cosmos_triton.guardrail.verdict import CHECK_SECONDS, Verdict, judged
from cosmos_triton.networks import retinaface, video_safety
from cosmos_triton.networks.retinaface import RetinaFace, RetinaFaceConfig
from cosmos_triton.networks.video_safety import ContentClassifier, ContentClassifierConfig, VideoSafety
from cosmos_triton.runtime import checkpoints as paths
from cosmos_triton.runtime.backends.backend import Runnable, open_graph
from cosmos_triton.runtime.backends.graphs import ExportedStage
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
    def load(
        cls,
        checkpoint_dir: Path,
        deployment: Deployment,
        placement: Placement,
        exported: ExportedStage | None = None,
    ) -> VideoGuardrail:
        """All networks in fp32, as released. A missing file raises.

        Args:
            exported: their graphs, where another engine than torch runs them.
        """
        detector: Runnable[RetinaFaceConfig]
        classifier: Runnable[ContentClassifierConfig]
        config = retinaface.PRESETS[deployment.face_detector]
        if exported:
            classes = video_safety.PRESETS[deployment.video_safety].classes
            side = SiglipVisionConfig.from_pretrained(checkpoint_dir / paths.VIDEO_SAFETY_ENCODER).image_size
            seen = ContentClassifierConfig(side, classes)
            classifier = open_graph(exported, "content_classifier", seen, placement.device)
            detector = open_graph(exported, "face_detector", config, placement.device)
        else:
            device, file = placement.load_device, checkpoint_dir / paths.FACE_DETECTOR
            module = load_content_classifier(checkpoint_dir, deployment, device)
            classifier = placement.put(module, module.encoder.encoder.layers)
            detector = placement.put(load_network(RetinaFace, config, file, dtype=torch.float32, device=device))
        return cls(ContentFilter(classifier), FaceBlur(detector))

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


def load_content_classifier(checkpoint_dir: Path, deployment: Deployment, device: str) -> ContentClassifier:
    """As a torch module, in fp32."""
    head = load_network(
        VideoSafety,
        video_safety.PRESETS[deployment.video_safety],
        checkpoint_dir / paths.VIDEO_SAFETY,
        dtype=torch.float32,
        device=device,
    )
    encoder = load_encoder(checkpoint_dir / paths.VIDEO_SAFETY_ENCODER).to(device)
    return ContentClassifier(encoder, head).requires_grad_(False).eval()
