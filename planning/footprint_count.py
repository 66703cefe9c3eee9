"""Counts the footprints that the memory plan is made from, by running each network on meta tensors.

    python -m cosmos_triton.planning.footprint_count    # writes planning/footprints.json

Tensors on the meta device have sizes and no content, so a network of any size runs in seconds. The bytes that are alive
at once, apart from weights, are its activations. Attention scores are not counted for the head widths of the fused
kernels, which do not keep them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from cosmos_triton.guardrail import content_filter, face_blur
from cosmos_triton.guardrail.aegis import MAX_ANSWER_TOKENS
from cosmos_triton.guardrail.frame_batches import FRAMES_AT_ONCE
from cosmos_triton.kernels.attention import Attention
from cosmos_triton.kernels.fused_transformer import FusedTransformer
from cosmos_triton.networks import (
    ar_config,
    diffusion_transformer,
    retinaface,
    siglip,
    text_encoder,
    tokenizer,
    video_safety,
)
from cosmos_triton.networks.ar_config import ARConfig
from cosmos_triton.networks.ar_transformer import NATIVE_KERNELS, ARTransformer
from cosmos_triton.networks.diffusion_transformer import PATCH, DiffusionTransformer
from cosmos_triton.networks.int8 import AR_QUANTISED, DIFFUSION_QUANTISED, quantise
from cosmos_triton.networks.kv_cache import KVCache
from cosmos_triton.networks.retinaface import RetinaFace
from cosmos_triton.networks.tokenizer import ContinuousDecoder, DiscreteDecoder, DiscreteEncoder, TokenizerConfig
from cosmos_triton.networks.video_safety import VideoSafety
from cosmos_triton.planning.footprints import FILE, Footprint, as_json, footprint_key
from cosmos_triton.runtime.ar.decoder import PREFILL_CHUNK, Decoder
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.runtime.diffusion.sampler import SIGMA_DATA, guided_denoise, guided_outputs
from cosmos_triton.runtime.diffusion.windows import WINDOW
from cosmos_triton.runtime.media.frames import to_model_input, to_uint8, to_unit_range
from cosmos_triton.runtime.prompt_encoder import MAX_TOKENS
from cosmos_triton.runtime.video_tokenizer import LatentStatistics, decode_latents, decode_tokens, encode_input_frames

FUSED_HEAD_WIDTH = 256  # the widest that the fused attention kernels take


class LiveBytes(TorchDispatchMode):
    """How many bytes of tensors are alive that were made within it; those that were there before do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._know(tensor, counts=False)
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            self._know(tensor, counts=True)
        return out

    def _know(self, tensor: Tensor, *, counts: bool) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        self._known.add(key)
        nbytes = storage.nbytes() if counts else 0
        self.now += nbytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, nbytes)

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.now -= nbytes


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


Blank = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Subject:
    """One network: how to build it, what of it can be streamed, and one run of it at the size that a stage runs it.

    A run is given the network, a function like torch.zeros that makes its inputs, and how many clips or prompts it is
    for, which only some networks take together.
    """

    build: Callable[[], nn.Module]
    blocks: Callable[[Any], Iterable[nn.Module]]
    run: Callable[[Any, Blank, int], None]
    dtype: torch.dtype = torch.bfloat16
    eight_bit: tuple[str, ...] = ()  # parts that 8-bit weights are offered for
    kv_cache: ARConfig | None = None  # of an AR model, which allocates the cache of one slot in its run


def count(subject: Subject) -> Footprint:
    with torch.device("meta"):
        network = subject.build().to("meta", subject.dtype).requires_grad_(False).eval()
    largest, number = _blocks(subject.blocks(network))
    slot = 0
    if subject.kv_cache:
        cache = KVCache.allocate(subject.kv_cache, 1, device="meta", dtype=subject.dtype)
        slot = sum(t.nbytes for t in (cache.k, cache.v, cache.cross_k, cache.cross_v) if t is not None)
    alive, flops = _run(subject, network)
    footprint = Footprint(
        weights=_held(network),
        block=largest,
        blocks=number,
        activations=alive - slot,
        flops=flops,
        kv_slot=slot,
        clip_tokens=subject.kv_cache.clip_tokens if subject.kv_cache else 0,
    )
    if isinstance(network, DiffusionTransformer):
        footprint = _with_fp8(footprint, subject)
    if subject.eight_bit:
        quantise(network, subject.eight_bit)
        footprint = replace(
            footprint,
            weights_8bit=_held(network),
            block_8bit=_blocks(subject.blocks(network))[0],
            activations_8bit=_run(subject, network)[0] - slot,
        )
    return footprint


def _with_fp8(footprint: Footprint, subject: Subject) -> Footprint:
    """The footprint with that of fp8 products, which only the fused form of the diffusion network has."""
    with torch.device("meta"):
        network = cast(DiffusionTransformer, subject.build().to(subject.dtype))
    fused = FusedTransformer(network, Attention(SDPBackend.MATH), fp8_on="meta")
    block, activations = _blocks(fused.blocks)[0], _run(subject, fused)[0]
    return replace(footprint, weights_fp8=_held(fused), block_fp8=block, activations_fp8=activations)


def _run(subject: Subject, network: nn.Module) -> tuple[int, int]:
    """Most bytes alive at once of what one run makes, and its operations."""
    flops = FlopCounterMode(display=False)
    with torch.inference_mode(), LiveBytes() as live, flops, FusedAttention(flops):
        subject.run(network, partial(torch.zeros, device="meta"), 1)
    return live.peak, flops.get_total_flops()


def gpu_decoder(network: ARTransformer, *, slots: int, window: int = 1) -> Decoder:
    """A decoder that allocates what one with the CUDA kernels does, on a network on the meta device.

    Those build no mask, read 8-bit weights of the output projection in place, and sample without workspace.
    """
    kernels = replace(NATIVE_KERNELS, logits=_logits_without_dequantisation, max_maskless_query_len=window)
    return Decoder(network, slots, window=window, kernels=kernels, draw=_draw_without_workspace)


def _logits_without_dequantisation(network: ARTransformer, hidden: Tensor) -> Tensor:
    return F.linear(hidden, hidden.new_empty(1).expand(network.output.weight.shape))


def _draw_without_workspace(logits: Tensor, *_: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    return torch.empty(logits.shape[:2], dtype=torch.int64, device=logits.device)


def _held(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _blocks(blocks: Iterable[nn.Module]) -> tuple[int, int]:
    """Bytes of the largest, and how many there are."""
    sizes = [_held(block) for block in blocks]
    return max(sizes, default=0), len(sizes)


class FusedAttention(TorchDispatchMode):
    """Scaled dot-product attention as the fused kernels have it: no memory for scores, operations counted in `flops`.

    In inference mode the operator arrives whole, so whoever calls it (transformers too) is covered.
    """

    def __init__(self, flops: FlopCounterMode) -> None:
        super().__init__()
        self._flops = flops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.scaled_dot_product_attention.default or args[0].shape[-1] > FUSED_HEAD_WIDTH:
            return func(*args, **(kwargs or {}))
        q, k = args[:2]
        self._flops.flop_counts["Global"]["attention"] += 4 * q.numel() * k.shape[-2]  # two GEMMs
        return torch.empty_like(q)


def _none(_: nn.Module) -> tuple[nn.Module, ...]:
    return ()


def subjects(deployment: Deployment) -> dict[str, Subject]:
    """The networks of a deployment, by kind."""
    d, ar = deployment, ar_config.PRESETS[deployment.ar_preset]
    discrete = tokenizer.PRESETS[d.discrete_tokenizer]
    found = {
        "ar": _ar_model(ar),
        "discrete_encoder": _discrete_encoder(discrete, d),
        "discrete_decoder": _discrete_decoder(discrete, ar),
        "diffusion": _diffusion(diffusion_transformer.PRESETS[d.diffusion_decoder], ar),
        "continuous_decoder": _continuous_decoder(tokenizer.PRESETS[d.continuous_tokenizer], d),
        "siglip": _siglip(siglip.PRESETS[d.video_safety], d),
        "video_safety": _safety_head(video_safety.PRESETS[d.video_safety]),
        "face_detector": _face_detector(retinaface.PRESETS[d.face_detector], d),
    }
    if deployment.is_video2world:
        found |= {"t5": _t5(text_encoder.PRESETS[d.text_encoder]), "aegis": _aegis(d)}
    return found


def _ar_model(config: ARConfig) -> Subject:
    def run(network: ARTransformer, blank: Blank, batch: int) -> None:
        """The last prefill chunk of a prompt of two latent frames, and one decode step."""
        decoder = gpu_decoder(network, slots=1)
        rows = min(PREFILL_CHUNK, 2 * config.frame_tokens)
        chunk, starts = blank(1, rows, dtype=torch.int64), blank(1, dtype=torch.int64)
        network.hidden_states(chunk, starts, decoder.cache, kv_len=2 * config.frame_tokens)
        decoder.step()

    return Subject(lambda: ARTransformer(config), lambda n: n.layers, run, eight_bit=AR_QUANTISED, kv_cache=config)


def _discrete_encoder(config: TokenizerConfig, deployment: Deployment) -> Subject:
    size = (deployment.height, deployment.width)

    def run(network: DiscreteEncoder, blank: Blank, batch: int) -> None:
        encode_input_frames(network, to_model_input(blank(9, *size, 3, dtype=torch.uint8), size)[None])

    return Subject(lambda: DiscreteEncoder(config), _none, run)


def _discrete_decoder(config: TokenizerConfig, ar: ARConfig) -> Subject:
    def run(network: DiscreteDecoder, blank: Blank, batch: int) -> None:
        tokens = blank(1, *ar.latent_shape, dtype=torch.int32)
        to_uint8(to_unit_range(decode_tokens(network, tokens).float())[0])

    return Subject(lambda: DiscreteDecoder(config), _none, run)


def _diffusion(config: diffusion_transformer.DiffusionConfig, ar: ARConfig) -> Subject:
    def run(network: DiffusionTransformer, blank: Blank, batch: int) -> None:
        """One guided evaluation of one window."""
        _, h, w = ar.latent_shape
        x = blank(batch, config.latent_channels, WINDOW, h * PATCH, w * PATCH, dtype=torch.float64)
        tokens = blank(batch, WINDOW, h, w, dtype=torch.int64)
        context = blank(batch, MAX_TOKENS, config.context_dim, dtype=torch.bfloat16)
        guided_denoise(guided_outputs(network, tokens, context), x, 1.0, context.dtype, guidance=1.8)

    def blocks(network: DiffusionTransformer) -> Iterable[nn.Module]:
        return network.blocks.values()

    return Subject(lambda: DiffusionTransformer(config), blocks, run, eight_bit=DIFFUSION_QUANTISED)


def _continuous_decoder(config: TokenizerConfig, deployment: Deployment) -> Subject:
    def run(network: ContinuousDecoder, blank: Blank, batch: int) -> None:
        h, w = (side // config.spatial_compression for side in (deployment.height, deployment.width))
        statistics = LatentStatistics(*(blank(1, config.latent_channels, WINDOW, 1, 1) for _ in range(2)))
        latents = blank(1, config.latent_channels, WINDOW, h, w)
        video = decode_latents(network, latents, statistics, sigma_data=SIGMA_DATA).float().clamp(-1, 1)
        to_uint8(((video[:, :, : deployment.frames] + 1) / 2)[0])

    return Subject(lambda: ContinuousDecoder(config), _none, run)


def _siglip(config: SiglipVisionConfig, deployment: Deployment) -> Subject:
    def run(network: SiglipVisionModel, blank: Blank, batch: int) -> None:
        for some in _frames(deployment, blank).split(FRAMES_AT_ONCE):
            network(pixel_values=content_filter.to_network_input(some, config.image_size))

    return Subject(lambda: SiglipVisionModel(config), lambda n: n.encoder.layers, run, dtype=torch.float32)


def _safety_head(config: video_safety.VideoSafetyConfig) -> Subject:
    def run(network: VideoSafety, blank: Blank, batch: int) -> None:
        network(blank(FRAMES_AT_ONCE, config.input_dim))

    return Subject(lambda: VideoSafety(config), _none, run, dtype=torch.float32)


def _face_detector(config: retinaface.RetinaFaceConfig, deployment: Deployment) -> Subject:
    def run(network: RetinaFace, blank: Blank, batch: int) -> None:
        for some in _frames(deployment, blank).split(FRAMES_AT_ONCE):
            network(face_blur.to_network_input(some))

    return Subject(lambda: RetinaFace(config), _none, run, dtype=torch.float32)


def _t5(config: text_encoder.TextEncoderConfig) -> Subject:
    def run(network: nn.Module, blank: Blank, batch: int) -> None:
        network(input_ids=blank(batch, MAX_TOKENS, dtype=torch.int64))

    return Subject(lambda: text_encoder.build_text_encoder(config), lambda n: n.encoder.block, run)


def _aegis(deployment: Deployment) -> Subject:
    """LlamaGuard-7b, on a prompt that leaves room for nothing but the answer."""
    config = LlamaConfig(max_position_embeddings=4096)
    if deployment.is_tiny:
        config = LlamaConfig(
            vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
        )

    def run(network: LlamaForCausalLM, blank: Blank, batch: int) -> None:
        tokens = blank(1, 4096 - MAX_ANSWER_TOKENS, dtype=torch.int64)
        network(tokens, use_cache=True, logits_to_keep=1)

    return Subject(lambda: LlamaForCausalLM(config), lambda n: n.model.layers, run)


def _frames(deployment: Deployment, blank: Blank) -> Tensor:
    return blank(deployment.frames, deployment.height, deployment.width, 3, dtype=torch.uint8)


def count_all() -> dict[str, Footprint]:
    """Every network of every deployment, by its key in the table."""
    every = {
        footprint_key(deployment, kind): subject
        for deployment in DEPLOYMENTS.values()
        for kind, subject in subjects(deployment).items()
    }
    return {key: count(subject) for key, subject in every.items()}


if __name__ == "__main__":
    FILE.write_text(as_json(count_all()))
