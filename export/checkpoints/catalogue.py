"""The catalogue of a checkpoint directory: each converted file, its released sources, and the tensors it must have.

A converted file has exactly the tensors of its network. The rest of a released file is left out: constants captured by
TorchScript, state of other frameworks, the unused halves of T5 and SigLIP.

transformers takes seconds to import: only the functions that need it do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cosmos_triton.export.checkpoints.huggingface import MODEL_PATTERNS, read_json
from cosmos_triton.export.checkpoints.released import Find, adapted, torch_file, transformers_folder
from cosmos_triton.guardrail import lemmas
from cosmos_triton.networks import (
    ar_config,
    ar_transformer,
    diffusion_transformer,
    retinaface,
    tokenizer,
    video_safety,
)
from cosmos_triton.runtime import checkpoints as paths
from cosmos_triton.runtime.checkpoints import network_shapes
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.mapped_file import Shapes
from cosmos_triton.runtime.prompt_encoder import MAX_TOKENS

GUARDRAIL = "Cosmos-1.0-Guardrail"
T5 = "google-t5/t5-11b"
LLAMA_GUARD = "meta-llama/LlamaGuard-7b"
AEGIS = "nvidia/Aegis-AI-Content-Safety-LlamaGuard-Defensive-1.0"
SIGLIP = "google/siglip-so400m-patch14-384"
STATISTICS_FRAMES = 16  # latent frames in mean_std.pt

NeededBy = Callable[[Deployment], bool]
PresetOf = Callable[[Deployment], str]
ShapesOf = Callable[[Path, Deployment], Shapes]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One converted file.

    target: its path in the checkpoint directory.
    find: finds its released sources in a checkpoint directory.
    shapes: of its tensors, for a deployment; they may depend on the config.json of the released folder.
    needed_by: whether a deployment needs it.
    """

    target: str
    find: Find
    shapes: ShapesOf
    needed_by: NeededBy

    def variants(self, directory: Path) -> dict[str, Shapes]:
        """Shapes of its tensors, by deployment."""
        users = [d for d in DEPLOYMENTS.values() if self.needed_by(d)] or DEPLOYMENTS.values()
        return {deployment.name: self.shapes(directory, deployment) for deployment in users}


def _every(_: Deployment) -> bool:
    return True


def _none(_: Deployment) -> bool:
    return False


def _only(deployment: Deployment) -> NeededBy:
    return lambda other: other.name == deployment.name


def _video2world(deployment: Deployment) -> bool:
    """These encode and check a prompt; the others use the stored embedding of a generic prompt."""
    return deployment.is_video2world


@cache
def _network_shapes(build: Callable[[Any], nn.Module], config: Any) -> Shapes:
    with torch.device("meta"):
        return network_shapes(build(config))


def _preset(build: Callable[[Any], nn.Module], presets: dict[str, Any], preset_of: PresetOf) -> ShapesOf:
    """Shapes of the network that a deployment has a preset of."""
    return lambda _, deployment: _network_shapes(build, presets[preset_of(deployment)])


def _statistics(_: Path, deployment: Deployment) -> Shapes:
    channels = tokenizer.PRESETS[deployment.continuous_tokenizer].latent_channels
    return dict.fromkeys(("mean", "std"), (channels * STATISTICS_FRAMES,))


def _context(_: Path, deployment: Deployment) -> Shapes:
    return {"context": (1, MAX_TOKENS, diffusion_transformer.PRESETS[deployment.diffusion_decoder].context_dim)}


def _t5(_: Path, deployment: Deployment) -> Shapes:
    from cosmos_triton.networks import text_encoder

    return _network_shapes(text_encoder.build_text_encoder, text_encoder.PRESETS[deployment.text_encoder])


def _llama(directory: Path, _: Deployment) -> Shapes:
    return _configured(directory / paths.TEXT_SAFETY / "config.json", _build_llama)


def _siglip(directory: Path, deployment: Deployment) -> Shapes:
    shapes = _configured(directory / paths.VIDEO_SAFETY_ENCODER / "config.json", _build_siglip)
    width = video_safety.PRESETS[deployment.video_safety].input_dim
    return shapes | {"post_layernorm.weight": (width,)}  # the width that the classifier needs


def _build_llama(config: dict[str, Any]) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**config))


def _build_siglip(config: dict[str, Any]) -> nn.Module:
    from transformers import SiglipConfig, SiglipVisionModel

    return SiglipVisionModel(SiglipConfig(**config).vision_config)


def _configured(path: Path, build: Callable[[dict[str, Any]], nn.Module]) -> Shapes:
    """Shapes of the network that a config.json describes."""
    config = read_json(path)
    try:
        with torch.device("meta"):
            return network_shapes(build(config))
    except Exception as error:  # transformers raises many types for a bad value
        raise CheckpointError(f"{path}: not a configuration of the model: {error}") from error


def _tokenizer(target: str, build: Callable[[Any], nn.Module], preset_of: PresetOf, needed_by: NeededBy) -> Checkpoint:
    source = target.replace(".safetensors", ".jit")
    return Checkpoint(target, torch_file(source), _preset(build, tokenizer.PRESETS, preset_of), needed_by)


def _ar_model(deployment: Deployment) -> Checkpoint:
    return Checkpoint(
        f"{deployment.ar_folder}/{paths.WEIGHTS}",
        torch_file(f"{deployment.ar_folder}/model.pt"),
        _preset(ar_transformer.ARTransformer, ar_config.PRESETS, lambda d: d.ar_preset),
        _only(deployment),
    )


_DIFFUSION = "Cosmos-1.0-Diffusion-7B-Decoder-DV8x16x16ToCV8x8x8"

CHECKPOINTS: tuple[Checkpoint, ...] = (
    *(_ar_model(deployment) for deployment in DEPLOYMENTS.values()),
    _tokenizer(paths.DISCRETE_ENCODER, tokenizer.DiscreteEncoder, lambda d: d.discrete_tokenizer, _every),
    _tokenizer(paths.DISCRETE_DECODER, tokenizer.DiscreteDecoder, lambda d: d.discrete_tokenizer, _every),
    _tokenizer(paths.CONTINUOUS_ENCODER, tokenizer.ContinuousEncoder, lambda d: d.continuous_tokenizer, _none),
    _tokenizer(paths.CONTINUOUS_DECODER, tokenizer.ContinuousDecoder, lambda d: d.continuous_tokenizer, _every),
    Checkpoint(
        paths.LATENT_STATISTICS,
        torch_file("Cosmos-1.0-Tokenizer-CV8x8x8/mean_std.pt", items=("mean", "std")),
        _statistics,
        _every,
    ),
    Checkpoint(
        paths.DIFFUSION_DECODER,
        torch_file(f"{_DIFFUSION}/model.pt"),
        _preset(
            diffusion_transformer.DiffusionTransformer, diffusion_transformer.PRESETS, lambda d: d.diffusion_decoder
        ),
        _every,
    ),
    Checkpoint(paths.GENERIC_PROMPT, torch_file(f"{_DIFFUSION}/aux_vars.pt"), _context, _every),
    Checkpoint(
        f"{paths.TEXT_ENCODER}/{paths.WEIGHTS}",
        transformers_folder(T5, T5),
        _t5,
        _video2world,
    ),
    Checkpoint(
        f"{paths.TEXT_SAFETY}/{paths.WEIGHTS}",
        adapted(
            transformers_folder(LLAMA_GUARD, LLAMA_GUARD),
            f"{GUARDRAIL}/aegis",
            AEGIS,
        ),
        _llama,
        _video2world,
    ),
    Checkpoint(
        f"{paths.VIDEO_SAFETY_ENCODER}/{paths.WEIGHTS}",
        transformers_folder(f"{GUARDRAIL}/video_content_safety_filter", SIGLIP),
        _siglip,
        _every,
    ),
    Checkpoint(
        paths.VIDEO_SAFETY,
        torch_file(f"{GUARDRAIL}/video_content_safety_filter/safety_filter.pt"),
        _preset(video_safety.VideoSafety, video_safety.PRESETS, lambda d: d.video_safety),
        _every,
    ),
    Checkpoint(
        paths.FACE_DETECTOR,
        torch_file(f"{GUARDRAIL}/face_blur_filter/Resnet50_Final.pth"),
        _preset(retinaface.RetinaFace, retinaface.PRESETS, lambda d: d.face_detector),
        _every,
    ),
)

WORDNET = f"{paths.NLTK_DATA}/{lemmas.WORDNET.as_posix()}"
# Further files of the prompt guardrail; each pattern must match a file.
PROMPT_FILES = (
    f"{paths.BLOCKLIST}/custom/*",
    f"{paths.BLOCKLIST}/exact_match/*",
    *(f"{paths.NLTK_DATA}/{file.as_posix()}" for file in lemmas.FILES),
    f"{paths.TEXT_SAFETY}/tokenizer.*",
)


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository on the Hugging Face hub: its destination folder, and patterns of the wanted files.

    `revision` is resolved to a commit once, which is recorded in the manifest.
    """

    name: str
    folder: str
    wanted: tuple[str, ...]
    needed_by: NeededBy
    revision: str = "main"


def _cosmos(folder: str, *wanted: str, needed_by: NeededBy = _every) -> HubRepository:
    return HubRepository(f"nvidia/{folder}", folder, wanted, needed_by)


HUB_REPOSITORIES: tuple[HubRepository, ...] = (
    *(
        _cosmos(deployment.ar_folder, "model.pt", "config.json", needed_by=_only(deployment))
        for deployment in DEPLOYMENTS.values()
        if not deployment.is_tiny
    ),
    _cosmos("Cosmos-1.0-Tokenizer-DV8x16x16", "encoder.jit", "decoder.jit"),
    _cosmos("Cosmos-1.0-Tokenizer-CV8x8x8", "decoder.jit", "mean_std.pt"),
    _cosmos(_DIFFUSION, "model.pt", "aux_vars.pt"),
    _cosmos(
        GUARDRAIL,
        "blocklist/*",
        "face_blur_filter/Resnet50_Final.pth",
        "video_content_safety_filter/safety_filter.pt",
    ),
    HubRepository(SIGLIP, f"{GUARDRAIL}/video_content_safety_filter", MODEL_PATTERNS, _every),
    HubRepository(T5, T5, MODEL_PATTERNS, _video2world),
    HubRepository(LLAMA_GUARD, LLAMA_GUARD, MODEL_PATTERNS, _video2world),
    HubRepository(AEGIS, f"{GUARDRAIL}/aegis", MODEL_PATTERNS, _video2world),
)
