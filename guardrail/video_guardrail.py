"""The guardrail of the stage video_guardrail: the content filter, then face blur."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import SiglipVisionConfig

from cosmos_triton.guardrail.content_filter import ContentFilter, load_encoder
from cosmos_triton.guardrail.face_blur import Blurred, FaceBlur
from cosmos_triton.guardrail.judgement import Judgement
from cosmos_triton.guardrail.verdict import CHECK_SECONDS, Verdict, run_check
from cosmos_triton.networks import retinaface, video_safety
from cosmos_triton.networks.retinaface import RetinaFace, RetinaFaceConfig
from cosmos_triton.networks.video_safety import ContentClassifier, ContentClassifierConfig, VideoSafety
from cosmos_triton.runtime.backends.backend import Runnable, open_graph
from cosmos_triton.runtime.backends.graphs import ExportedStage
from cosmos_triton.runtime.checkpoints import load_network
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.residency import Placement


class VideoGuardrail:
    """Blocks a video with an unsafe frame, and pixelates the faces in any other."""

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
        """All networks in fp32, as released.

        Args:
            exported: graphs for ONNX Runtime or TensorRT; None to run in torch.

        Raises:
            CheckpointError, OSError: a file is missing or broken.
        """
        detector: Runnable[RetinaFaceConfig]
        classifier: Runnable[ContentClassifierConfig]
        config = retinaface.PRESETS[deployment.face_detector]
        if exported:
            classes = video_safety.PRESETS[deployment.video_safety].classes
            side = SiglipVisionConfig.from_pretrained(
                checkpoint_dir / deployment.release.video_safety_encoder
            ).image_size
            classifier_config = ContentClassifierConfig(side, classes)
            classifier = open_graph(exported, "content_classifier", classifier_config, placement.device)
            detector = open_graph(exported, "face_detector", config, placement.device)
        else:
            device, file = placement.load_device, checkpoint_dir / deployment.release.face_detector
            module = load_content_classifier(checkpoint_dir, deployment, device)
            classifier = placement.put(module, module.encoder.encoder.layers)
            detector = placement.put(load_network(RetinaFace, config, file, dtype=torch.float32, device=device))
        return cls(ContentFilter(classifier), FaceBlur(detector))

    def apply(self, frames: Tensor) -> tuple[Tensor, Judgement]:
        """Judge RGB uint8 frames [T, H, W, 3], and blur their faces.

        Returns:
            The frames to return to the client, all black if blocked; and the judgement.
        """
        result = Blurred(torch.zeros_like(frames), faces=0, frames_with_faces=0)

        def blur() -> Verdict:
            nonlocal result
            blurred = self.face_blur.blur(frames)
            if (blurred.frames.shape, blurred.frames.dtype) != (frames.shape, frames.dtype):
                raise ValueError(f"the blurred frames are {blurred.frames.dtype} {tuple(blurred.frames.shape)}")
            result = blurred
            return Verdict.passed(self.face_blur.name)

        verdicts = [
            run_check(self.content_filter.name, lambda: self.content_filter.judge(frames), seconds=self.check_seconds)
        ]
        if verdicts[0].safe:
            verdicts.append(run_check(self.face_blur.name, blur, seconds=self.check_seconds))
        return result.frames, Judgement(tuple(verdicts), result.facts())


def load_content_classifier(checkpoint_dir: Path, deployment: Deployment, device: str) -> ContentClassifier:
    """SigLIP's vision tower and the safety classifier as one torch module, in fp32."""
    head = load_network(
        VideoSafety,
        video_safety.PRESETS[deployment.video_safety],
        checkpoint_dir / deployment.release.video_safety,
        dtype=torch.float32,
        device=device,
    )
    encoder = load_encoder(checkpoint_dir / deployment.release.video_safety_encoder).to(device)
    return ContentClassifier(encoder, head).requires_grad_(False).eval()
