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

from cosmos_triton.export.checkpoints.huggingface import read_json
from cosmos_triton.export.checkpoints.released import Find, adapted, first_of, torch_file, transformers_folder
from cosmos_triton.guardrail import lemmas
from cosmos_triton.networks import (
    ar_config,
    ar_transformer,
    diffusion_transformer,
    retinaface,
    tokenizer,
    video_safety,
)
from cosmos_triton.runtime.checkpoints import network_shapes
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.mapped_file import Shapes
from cosmos_triton.runtime.prompt_encoder import MAX_TOKENS
from cosmos_triton.runtime.releases import WEIGHTS, Release

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


def every(_: Deployment) -> bool:
    return True


def _none(_: Deployment) -> bool:
    return False


def only(deployment: Deployment) -> NeededBy:
    return lambda other: other.name == deployment.name


def video2world(deployment: Deployment) -> bool:
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


def _llama(folder: str) -> ShapesOf:
    """As the config.json in `folder` says."""
    return lambda directory, _: _configured(directory / folder / "config.json", _build_llama)


def _siglip(folder: str) -> ShapesOf:
    """As the config.json in `folder` says, with the width that the classifier needs."""

    def shapes(directory: Path, deployment: Deployment) -> Shapes:
        width = video_safety.PRESETS[deployment.video_safety].input_dim
        found = _configured(directory / folder / "config.json", _build_siglip)
        return found | {"post_layernorm.weight": (width,)}

    return shapes


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
        f"{deployment.ar_folder}/{WEIGHTS}",
        torch_file(f"{deployment.ar_folder}/model.pt"),
        _preset(ar_transformer.ARTransformer, ar_config.PRESETS, lambda d: d.ar_preset),
        only(deployment),
    )


def checkpoints_of(release: Release) -> tuple[Checkpoint, ...]:
    """Every converted file of a release."""
    return (
        *(_ar_model(deployment.of(release)) for deployment in DEPLOYMENTS.values()),
        _tokenizer(release.discrete_encoder, tokenizer.DiscreteEncoder, lambda d: d.discrete_tokenizer, every),
        _tokenizer(release.discrete_decoder, tokenizer.DiscreteDecoder, lambda d: d.discrete_tokenizer, every),
        _tokenizer(release.continuous_encoder, tokenizer.ContinuousEncoder, lambda d: d.continuous_tokenizer, _none),
        _tokenizer(release.continuous_decoder, tokenizer.ContinuousDecoder, lambda d: d.continuous_tokenizer, every),
        Checkpoint(
            release.latent_statistics,
            torch_file(f"{release.continuous_tokenizer}/mean_std.pt", items=("mean", "std")),
            _statistics,
            every,
        ),
        Checkpoint(
            release.diffusion_network,
            torch_file(f"{release.diffusion_decoder}/model.pt"),
            _preset(
                diffusion_transformer.DiffusionTransformer, diffusion_transformer.PRESETS, lambda d: d.diffusion_decoder
            ),
            every,
        ),
        Checkpoint(release.generic_prompt, torch_file(f"{release.diffusion_decoder}/aux_vars.pt"), _context, every),
        Checkpoint(
            f"{release.t5_encoder}/{WEIGHTS}",
            transformers_folder(T5, T5),
            _t5,
            video2world,
        ),
        *_guardrails(release),
    )


def _guardrails(release: Release) -> tuple[Checkpoint, ...]:
    folders, filter_folder = release.guardrail_folders, "video_content_safety_filter"
    llama_guard = transformers_folder(LLAMA_GUARD, LLAMA_GUARD)
    return (
        Checkpoint(
            f"{release.text_safety}/{WEIGHTS}",
            first_of(folders, lambda folder: adapted(llama_guard, f"{folder}/aegis", AEGIS)),
            _llama(release.text_safety),
            video2world,
        ),
        Checkpoint(
            f"{release.video_safety_encoder}/{WEIGHTS}",
            first_of(folders, lambda folder: transformers_folder(f"{folder}/{filter_folder}", SIGLIP)),
            _siglip(release.video_safety_encoder),
            every,
        ),
        Checkpoint(
            release.video_safety,
            first_of(folders, lambda folder: torch_file(f"{folder}/{filter_folder}/safety_filter.pt")),
            _preset(video_safety.VideoSafety, video_safety.PRESETS, lambda d: d.video_safety),
            every,
        ),
        Checkpoint(
            release.face_detector,
            first_of(folders, lambda folder: torch_file(f"{folder}/face_blur_filter/Resnet50_Final.pth")),
            _preset(retinaface.RetinaFace, retinaface.PRESETS, lambda d: d.face_detector),
            every,
        ),
    )


def wordnet_of(release: Release) -> str:
    """The folder of WordNet, which the hub has as an archive of its name."""
    return f"{release.nltk_data}/{lemmas.WORDNET.as_posix()}"


def prompt_files(release: Release) -> tuple[str, ...]:
    """Further files of the prompt guardrail; each pattern must match a file."""
    return (
        f"{release.blocklist}/custom/*",
        f"{release.blocklist}/exact_match/*",
        *(f"{release.nltk_data}/{file.as_posix()}" for file in lemmas.FILES),
        f"{release.text_safety}/tokenizer.*",
    )
