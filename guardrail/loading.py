"""The guardrails of a deployment, loaded from its checkpoints. A missing file raises: nothing starts without them."""

from __future__ import annotations

from pathlib import Path

import torch

from cosmos_triton.guardrail.aegis import Aegis
from cosmos_triton.guardrail.blocklist import Blocklist
from cosmos_triton.guardrail.content_filter import ContentFilter, load_encoder
from cosmos_triton.guardrail.face_blur import FaceBlur
from cosmos_triton.guardrail.pipeline import PromptGuardrail, VideoGuardrail
from cosmos_triton.networks import retinaface, video_safety
from cosmos_triton.networks.retinaface import RetinaFace
from cosmos_triton.networks.video_safety import VideoSafety
from cosmos_triton.runtime import checkpoints as paths
from cosmos_triton.runtime.checkpoints import load_network
from cosmos_triton.runtime.deployments import Deployment


def load_prompt_guardrail(checkpoint_dir: Path, device: str) -> PromptGuardrail:
    """The blocklist, then Aegis: in bf16 on a GPU, in fp32 on a CPU."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    blocklist = Blocklist.from_folder(checkpoint_dir / paths.BLOCKLIST, checkpoint_dir / paths.NLTK_DATA)
    return PromptGuardrail((blocklist, Aegis.load(checkpoint_dir / paths.TEXT_SAFETY, device=device, dtype=dtype)))


def load_video_guardrail(checkpoint_dir: Path, deployment: Deployment, device: str) -> VideoGuardrail:
    """Both networks in fp32, as released."""
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
    return VideoGuardrail(ContentFilter(encoder, head), FaceBlur(detector))
