"""The table of graphs that can be exported: network, weights, inputs, outputs, and tolerance against torch.

Legend: B batch, T frames, H, W pixels, h, w token grid, S side of SigLIP's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig

from cosmos_triton.guardrail.video_guardrail import load_content_classifier
from cosmos_triton.networks import diffusion_transformer, retinaface, text_encoder, tokenizer
from cosmos_triton.networks.diffusion_transformer import PATCH
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.diffusion.windows import WINDOW
from cosmos_triton.runtime.prompt_encoder import MAX_TOKENS
from cosmos_triton.runtime.releases import WEIGHTS, Release

Shapes = list[list[int]]
Samples = tuple[Tensor, ...]
MakeSample = Callable[[Path, Deployment, int], Samples]

NOISE_LEVEL = "noise_level"
CELLS = 4  # of the checkerboard, in either direction
SHORT_PROMPT = 7  # tokens
SMALL_GRID = (6, 8)  # of denoising: a clip's own grid would take the 7B network an hour on a CPU

BATCH = {0: "batch"}


@dataclass(frozen=True, slots=True)
class LazyWeights:
    """A network that is built without memory, its weights being read from one checkpoint file as they are needed."""

    build: Callable[[Any], nn.Module]
    presets: dict[str, Any]
    file: Callable[[Release], str]

    def files(self, release: Release) -> tuple[str, ...]:
        return (self.file(release),)


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """A network that is loaded the way its stage loads it; for small ones of several files."""

    load: Callable[[Path, Deployment, str], nn.Module]
    files: Callable[[Release], tuple[str, ...]]


WeightSource = LazyWeights | LoadedWeights


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One graph.

    network_name: the preset of a deployment's network.
    inputs: in the order of the network's forward, each with its dynamic axes and their names.
    sample: random inputs of a size, from a fixed seed. The size is the batch; of the discrete encoder, which is called
        with one clip at a time, it is the number of frames.
    sizes: min, opt and max that the stage calls it with. Guidance doubles the batch of denoising.
    traced: the size that the network is traced with; none of its dynamic axes may be 1.
    served: a sample of the shapes that the stage calls it with, where those of `sample` are smaller.
    tolerance: of fp32 against torch: the largest difference relative to the largest value, or the share of tokens.
    """

    network_name: Callable[[Deployment], str]
    source: WeightSource
    inputs: dict[str, dict[int, str]]
    outputs: tuple[str, ...]
    sample: MakeSample
    sizes: tuple[int, int, int]
    traced: int = 2
    served: MakeSample | None = None
    tolerance: float = 1e-4

    def profiles(self, directory: Path, deployment: Deployment) -> dict[str, Shapes]:
        """The min, opt and max shape of each input, as the stage calls it."""
        sample = self.served or self.sample
        by_size = [[list(x.shape) for x in sample(directory, deployment, size)] for size in self.sizes]
        return {name: [shapes[i] for shapes in by_size] for i, name in enumerate(self.inputs)}


def in_precision(spec: GraphSpec, sample: Samples, dtype: torch.dtype) -> Samples:
    """A sample as a network of `dtype` takes it; the noise level is fp32 to all."""
    named = zip(spec.inputs, sample, strict=True)
    return tuple(x.to(dtype) if x.is_floating_point() and name != NOISE_LEVEL else x for name, x in named)


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _integers(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(0))


def _prompts(_: Path, deployment: Deployment, batch: int) -> Samples:
    """Every other one is short."""
    ids = _integers(text_encoder.PRESETS[deployment.text_encoder].vocab_size, batch, MAX_TOKENS)
    lengths = torch.tensor([SHORT_PROMPT if i % 2 else MAX_TOKENS for i in range(batch)])[:, None]
    return ids, (torch.arange(MAX_TOKENS) < lengths).long()


def _input_frames(_: Path, deployment: Deployment, frames: int) -> Samples:
    return (_normal(1, tokenizer.PIXEL_CHANNELS, frames, deployment.height, deployment.width).clamp(-1, 1),)


def _clip_grid(deployment: Deployment) -> tuple[int, int]:
    compression = tokenizer.PRESETS[deployment.discrete_tokenizer].spatial_compression
    return deployment.height // compression, deployment.width // compression


def _clip_tokens(_: Path, deployment: Deployment, batch: int) -> Samples:
    config = tokenizer.PRESETS[deployment.discrete_tokenizer]
    return (_integers(config.codebook_size, batch, config.chunk_latents, *_clip_grid(deployment)).int(),)


def _noisy(deployment: Deployment, batch: int, grid: tuple[int, int]) -> Samples:
    """Latents, tokens, context and noise level."""
    config = diffusion_transformer.PRESETS[deployment.diffusion_decoder]
    height, width = grid
    return (
        _normal(batch, config.latent_channels, WINDOW, height * PATCH, width * PATCH),
        _integers(config.token_vocab_size, batch, WINDOW, height, width),
        _normal(batch, MAX_TOKENS, config.context_dim),
        torch.linspace(-1, 1, batch),
    )


def _latents(_: Path, deployment: Deployment, batch: int) -> Samples:
    config = tokenizer.PRESETS[deployment.continuous_tokenizer]
    size = (deployment.height // config.spatial_compression, deployment.width // config.spatial_compression)
    return (_normal(batch, config.latent_channels, config.chunk_latents, *size),)


def _squares(directory: Path, deployment: Deployment, batch: int) -> Samples:
    """Noise, and every other one a checkerboard of yellow and blue, which the tiny classifier takes for unsafe."""
    side = SiglipVisionConfig.from_pretrained(directory / deployment.release.video_safety_encoder).image_size
    pixels = _normal(batch, tokenizer.PIXEL_CHANNELS, side, side).clamp(-1, 1)
    row, column = torch.meshgrid(*[torch.arange(side) * CELLS // side] * 2, indexing="ij")
    sign = 1.0 - 2 * ((row + column) % 2)  # [S, S]
    pixels[::2] = 0.9 * torch.tensor([1.0, 1.0, -1.0])[:, None, None] * sign + 0.1 * pixels[::2]
    return (pixels,)


def _frames(_: Path, deployment: Deployment, batch: int) -> Samples:
    return (100 * _normal(batch, tokenizer.PIXEL_CHANNELS, deployment.height, deployment.width).clamp(-1, 1),)


SPECS: dict[str, GraphSpec] = {
    "text_encoder": GraphSpec(
        network_name=lambda deployment: deployment.text_encoder,
        source=LazyWeights(
            text_encoder.build_text_encoder, text_encoder.PRESETS, lambda release: f"{release.t5_encoder}/{WEIGHTS}"
        ),
        inputs={"input_ids": BATCH, "attention_mask": BATCH},
        outputs=("hidden_states",),
        sample=_prompts,
        sizes=(1, 1, 8),
    ),
    "discrete_encoder": GraphSpec(
        network_name=lambda deployment: deployment.discrete_tokenizer,
        source=LazyWeights(tokenizer.DiscreteEncoder, tokenizer.PRESETS, lambda release: release.discrete_encoder),
        inputs={"video": {2: "frames"}},
        outputs=("tokens",),
        sample=_input_frames,
        sizes=(1, 9, 9),
        traced=9,
        tolerance=1e-3,  # a latent between two levels may be rounded to the other one
    ),
    "discrete_decoder": GraphSpec(
        network_name=lambda deployment: deployment.discrete_tokenizer,
        source=LazyWeights(tokenizer.DiscreteDecoder, tokenizer.PRESETS, lambda release: release.discrete_decoder),
        inputs={"tokens": BATCH},
        outputs=("video",),
        sample=_clip_tokens,
        sizes=(1, 1, 1),
    ),
    "denoising_step": GraphSpec(
        network_name=lambda deployment: deployment.diffusion_decoder,
        source=LazyWeights(
            diffusion_transformer.DiffusionTransformer,
            diffusion_transformer.PRESETS,
            lambda release: release.diffusion_network,
        ),
        inputs={
            "latents": {0: "batch", 3: "height", 4: "width"},
            "tokens": {0: "batch", 2: "token_height", 3: "token_width"},
            "context": BATCH,
            NOISE_LEVEL: BATCH,
        },
        outputs=("prediction",),
        sample=lambda _, deployment, batch: _noisy(deployment, batch, SMALL_GRID),
        sizes=(2, 2, 8),
        traced=4,
        served=lambda _, deployment, batch: _noisy(deployment, batch, _clip_grid(deployment)),
    ),
    "continuous_decoder": GraphSpec(
        network_name=lambda deployment: deployment.continuous_tokenizer,
        source=LazyWeights(tokenizer.ContinuousDecoder, tokenizer.PRESETS, lambda release: release.continuous_decoder),
        inputs={"latents": BATCH},
        outputs=("video",),
        sample=_latents,
        sizes=(1, 1, 4),
    ),
    "content_classifier": GraphSpec(
        network_name=lambda deployment: deployment.video_safety,
        source=LoadedWeights(
            load_content_classifier,
            lambda release: (f"{release.video_safety_encoder}/{WEIGHTS}", release.video_safety),
        ),
        inputs={"pixels": BATCH},
        outputs=("logits",),
        sample=_squares,
        sizes=(1, 8, 8),
    ),
    "face_detector": GraphSpec(
        network_name=lambda deployment: deployment.face_detector,
        source=LazyWeights(retinaface.RetinaFace, retinaface.PRESETS, lambda release: release.face_detector),
        inputs={"pixels": BATCH},
        outputs=("loc", "conf", "landms"),
        sample=_frames,
        sizes=(1, 8, 8),
    ),
}
