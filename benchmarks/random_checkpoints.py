"""Random weights of the released shapes and precisions, written straight to disk: they take the memory and the time of
trained ones, without a download.

The guardrails are made to pass everything, so that a benchmark's clip goes through every stage: every frame is safe and
has no face, and LlamaGuard answers `safe`. Tokenizers and word lists are those of the tiny checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast, SiglipConfig

from cosmos_triton.cli.main import main
from cosmos_triton.export.checkpoints.catalogue import checkpoints_of
from cosmos_triton.export.checkpoints.safetensors_writer import write_safetensors
from cosmos_triton.networks.siglip import PRESETS
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.releases import COSMOS_1_0, WEIGHTS

IN_FP32 = (COSMOS_1_0.video_safety_encoder, COSMOS_1_0.video_safety, COSMOS_1_0.face_detector)  # all others: bfloat16
LLAMA = f"{COSMOS_1_0.text_safety}/{WEIGHTS}"
# Channels of LlamaGuard's residual stream that no layer writes to: always set, and set after `safe`.
ALWAYS, SAID_SAFE = 0, 1


def write_random_checkpoints(directory: Path, deployment: Deployment) -> None:
    """Write every converted file of the deployment; for a video2world deployment also its tokenizers and word lists."""
    if deployment.is_video2world:
        for step in ("tiny", "convert"):
            if main(["checkpoints", step, str(directory)]):
                raise SystemExit(f"checkpoints {step} failed")
    if deployment.is_video2world and not deployment.is_tiny:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory / COSMOS_1_0.text_safety)
        llama = LlamaConfig(  # of 7B, by default
            max_position_embeddings=4096, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
        )
        (directory / COSMOS_1_0.text_safety / "config.json").write_text(llama.to_json_string(use_diff=False))
    siglip = directory / COSMOS_1_0.video_safety_encoder
    siglip.mkdir(parents=True, exist_ok=True)
    config = SiglipConfig(vision_config=PRESETS[deployment.video_safety].to_dict())
    (siglip / "config.json").write_text(config.to_json_string(use_diff=False))
    targets = [checkpoint.target for checkpoint in checkpoints_of(COSMOS_1_0) if checkpoint.needed_by(deployment)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # torch has threads, which do not survive a fork
        list(pool.map(write_random_file, [directory] * len(targets), targets, [deployment] * len(targets)))


def write_random_file(directory: Path, target: str, deployment: Deployment) -> None:
    """Write one converted file."""
    checkpoint = next(checkpoint for checkpoint in checkpoints_of(COSMOS_1_0) if checkpoint.target == target)
    dtype = torch.float32 if target.startswith(IN_FP32) else torch.bfloat16
    with torch.device("meta"):
        tensors = {
            name: torch.empty(shape, dtype=torch.int64 if name.endswith("num_batches_tracked") else dtype)
            for name, shape in checkpoint.shapes(directory, deployment).items()
        }
    pattern = torch.rand(1 << 22, generator=torch.Generator().manual_seed(0)) * 2 - 1
    passes_all = passes_everything(directory, target)

    def value(name: str, tensor: Tensor) -> Tensor:
        is_class_head = target == COSMOS_1_0.face_detector and name.startswith("ClassHead")
        if tensor.ndim < 2 or target == COSMOS_1_0.video_safety or is_class_head:  # norms are the identity
            ones = name.endswith(("norm.weight", "std", "running_var")) or (tensor.ndim == 1 and "weight" in name)
            filled = torch.full(tensor.shape, int(ones), dtype=tensor.dtype)
        else:
            scaled = (pattern * tensor[0].numel() ** -0.5).to(tensor.dtype)
            filled = scaled.repeat(-(-tensor.numel() // len(scaled)))[: tensor.numel()].view(tensor.shape)
        passes_all(name, filled)
        return filled

    (directory / target).parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / target, tensors, value=value, progress=lambda _: None)


def passes_everything(directory: Path, target: str) -> Callable[[str, Tensor], None]:
    """What changes the weights of a guardrail, by name, so that it passes all that it sees."""

    def safe_frames(name: str, weight: Tensor) -> None:
        if name.endswith("layers.6.bias"):
            weight[0] = 1  # safe

    def no_faces(name: str, weight: Tensor) -> None:
        if name.startswith("ClassHead") and name.endswith("bias"):
            weight[::2] = 8  # background

    def safe_prompts(name: str, weight: Tensor) -> None:
        if name.endswith("embed_tokens.weight"):
            weight[:, [ALWAYS, SAID_SAFE]] = torch.tensor([100.0, 0.0], dtype=weight.dtype)
            weight[safe, SAID_SAFE] = 100
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[[ALWAYS, SAID_SAFE]] = 0
        elif name == "lm_head.weight":
            weight[:, [ALWAYS, SAID_SAFE]] = 0
            weight[safe, ALWAYS], weight[end, SAID_SAFE] = 10, 20

    if target == LLAMA:
        tokenizer = json.loads((directory / COSMOS_1_0.text_safety / "tokenizer.json").read_text())
        ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        safe, end = ids["safe"], ids["</s>"]
        return safe_prompts
    return {COSMOS_1_0.video_safety: safe_frames, COSMOS_1_0.face_detector: no_faces}.get(
        target, lambda name, weight: None
    )
