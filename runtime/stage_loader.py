"""The networks of each stage, loaded for one deployment onto one device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from cosmos_triton.networks import ar_config, diffusion_transformer, tokenizer
from cosmos_triton.networks.ar_transformer import ARTransformer, fuse_projections
from cosmos_triton.networks.diffusion_transformer import DiffusionTransformer
from cosmos_triton.networks.int8 import AR_QUANTISED, DIFFUSION_QUANTISED, quantise
from cosmos_triton.networks.tokenizer import ContinuousDecoder, DiscreteDecoder, DiscreteEncoder, TokenizerConfig
from cosmos_triton.runtime.ar.decoder import Decoder
from cosmos_triton.runtime.backends.backend import Runnable, open_graph
from cosmos_triton.runtime.backends.graphs import ExportedStage
from cosmos_triton.runtime.checkpoints import load_network
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.diffusion.decoder import DiffusionDecoder
from cosmos_triton.runtime.diffusion.sampler import SAMPLERS, Denoiser
from cosmos_triton.runtime.fp8_support import require_precision
from cosmos_triton.runtime.mapped_file import SafetensorsFile
from cosmos_triton.runtime.releases import WEIGHTS, Release
from cosmos_triton.runtime.residency import Placement
from cosmos_triton.runtime.stages import FP8_PRECISIONS, Precision
from cosmos_triton.runtime.video_tokenizer import LatentStatistics

if TYPE_CHECKING:
    from cosmos_triton.runtime.prompt_encoder import PromptEncoder

Config = TypeVar("Config")
Network = TypeVar("Network", bound=nn.Module)

# Submodules of a layer that `ARTransformer.write_context` uses, outside of the layer's forward.
CONTEXT_PROJECTIONS = ("cross_attention.wk", "cross_attention.wv", "cross_attention.k_norm")


def place_ar_decoder(network: ARTransformer, placement: Placement, slots: int, window: int = 1) -> Decoder:
    """The decoder of a network that is on `placement.load_device`; weights and KV cache are placed as planned."""
    fuse_projections(network)
    placement.put(network, network.layers, exclude=CONTEXT_PROJECTIONS)
    is_offloaded = not placement.is_resident
    if placement.device == "cpu":
        decoder = Decoder(network, slots, window=window)
    else:
        from cosmos_triton.runtime.ar.cuda_decoder import CudaDecoder  # needs Triton, the compiler

        decoder = CudaDecoder(network, slots, window=window, is_offloaded=is_offloaded)
    if is_offloaded:
        decoder.offload()
        placement.offloadables.append(decoder)
    return decoder


def place_denoiser(network: DiffusionTransformer, placement: Placement, precision: Precision = "bf16") -> Denoiser:
    """The diffusion network that is on the placement's `load_device`, or on the CPU: on a GPU in its fused form, which
    takes its weights over.

    Args:
        precision: "fp8" for products of the blocks in fp8, with their weights stored so; "fp8-attention" for attention
            in fp8 as well.

    Raises:
        InvalidValue: the GPU, or its software, has not what the precision needs.
    """
    if placement.device == "cpu":
        return placement.put(network, network.blocks.values())
    from cosmos_triton.kernels.attention import choose_attention  # these need Triton, the compiler
    from cosmos_triton.kernels.fp8_attention import Fp8Attention
    from cosmos_triton.kernels.fused_transformer import FusedTransformer

    require_precision(precision, placement.device)
    config = network.config
    fused = FusedTransformer(
        network,
        choose_attention(placement.device, network.dtype, heads=config.n_heads, head_dim=config.head_dim),
        fp8_on=placement.device if precision in FP8_PRECISIONS else None,
        fp8_attention=Fp8Attention() if precision == "fp8-attention" else None,
    )
    fused.to(placement.load_device)
    return placement.put(fused, fused.blocks)


@dataclass(frozen=True, slots=True)
class StageLoader:
    """Loads the networks of one stage. They run in bf16 on a GPU and in fp32 on a CPU.

    Args:
        placement: where the weights are kept. The stage runs within `placement.on_device()`.
        exported: the stage's graphs, where another backend than torch runs it.
        precision: "int8" stores the matrices of the AR model and of the diffusion network in 8 bits; the latter has
            those of `place_denoiser` too.
    """

    deployment: Deployment
    checkpoint_dir: Path
    placement: Placement
    exported: ExportedStage | None = None
    precision: Precision = "bf16"

    @property
    def release(self) -> Release:
        return self.deployment.release

    @property
    def device(self) -> str:
        return self.placement.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    def text_encoder(self) -> PromptEncoder:
        from cosmos_triton.networks import text_encoder  # brings transformers, which takes seconds to import
        from cosmos_triton.runtime.prompt_encoder import PromptEncoder, load_tokenizer

        folder = self.checkpoint_dir / self.release.t5_encoder
        config = text_encoder.PRESETS[self.deployment.text_encoder]
        file = f"{self.release.t5_encoder}/{WEIGHTS}"
        network: Runnable[Any]
        if self.exported:
            network = open_graph(self.exported, "text_encoder", config, self.device)
        else:
            module = self._load(text_encoder.build_text_encoder, config, file)
            network = self.placement.put(module, module.encoder.block)
        return PromptEncoder(network, load_tokenizer(folder))

    def discrete_encoder(self) -> Runnable[TokenizerConfig]:
        config = tokenizer.PRESETS[self.deployment.discrete_tokenizer]
        if self.exported:
            return open_graph(self.exported, "discrete_encoder", config, self.device)
        return self._place_tokenizer(self._load(DiscreteEncoder, config, self.release.discrete_encoder))

    def discrete_decoder(self) -> Runnable[TokenizerConfig]:
        config = tokenizer.PRESETS[self.deployment.discrete_tokenizer]
        if self.exported:
            return open_graph(self.exported, "discrete_decoder", config, self.device)
        return self._place_tokenizer(self._load(DiscreteDecoder, config, self.release.discrete_decoder))

    def ar_decoder(self, slots: int, window: int) -> Decoder:
        """For `slots` clips, with a speculation window of `window` tokens."""
        config = ar_config.PRESETS[self.deployment.ar_preset]
        network = self._load(ARTransformer, config, f"{self.deployment.ar_folder}/{WEIGHTS}", eight_bit=AR_QUANTISED)
        return place_ar_decoder(network, self.placement, slots, window)

    def diffusion_decoder(self) -> DiffusionDecoder:
        config = diffusion_transformer.PRESETS[self.deployment.diffusion_decoder]
        tokenizer_config = tokenizer.PRESETS[self.deployment.continuous_tokenizer]
        network: Denoiser
        decoder: Runnable[TokenizerConfig]
        if self.exported:
            network = open_graph(self.exported, "denoising_step", config, self.device)
            decoder = open_graph(self.exported, "continuous_decoder", tokenizer_config, self.device)
        else:
            module = self._load(
                DiffusionTransformer,
                config,
                self.release.diffusion_network,
                eight_bit=DIFFUSION_QUANTISED,
                on_cpu=self.precision in FP8_PRECISIONS,
            )
            network = place_denoiser(module, self.placement, self.precision)
            decoder = self._place_tokenizer(
                self._load(ContinuousDecoder, tokenizer_config, self.release.continuous_decoder)
            )
        statistics = SafetensorsFile(self.checkpoint_dir / self.release.latent_statistics)
        mean, std = (statistics.tensor(name).to(self.device) for name in ("mean", "std"))
        return DiffusionDecoder(
            network,
            decoder,
            LatentStatistics.from_vectors(mean, std, tokenizer_config),
            SAMPLERS[self.release.sampler](),
            self.release.noise_seed,
        )

    def generic_context(self) -> Tensor:
        """Embedding [512, X] of the prompt that the diffusion decoder sees where the user gives none."""
        return SafetensorsFile(self.checkpoint_dir / self.release.generic_prompt).tensor("context")[0].to(self.device)

    def _place_tokenizer(self, network: Network) -> Network:
        """On a GPU in its fused form."""
        if self.device != "cpu":
            from cosmos_triton.kernels.fused_tokenizer import fuse_tokenizer  # needs Triton, the compiler

            fuse_tokenizer(network)
        return self.placement.put(network)

    def _load(
        self,
        build: Callable[[Config], Network],
        config: Config,
        file: str,
        *,
        eight_bit: tuple[str, ...] = (),
        on_cpu: bool = False,
    ) -> Network:
        """A network on the placement's `load_device`.

        Args:
            eight_bit: names of the parts that can have 8-bit weights.
            on_cpu: leave the network there, to be quantised: in bf16 it may not fit on the device.
        """
        is_8_bit = self.precision == "int8" and bool(eight_bit)
        device = "cpu" if is_8_bit or on_cpu else self.placement.load_device
        network = load_network(build, config, self.checkpoint_dir / file, dtype=self.dtype, device=device)
        if is_8_bit:
            quantise(network, eight_bit)
        return network if on_cpu else network.to(self.placement.load_device)
