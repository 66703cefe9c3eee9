"""The kernels of the diffusion decoder and the video tokenizers, interpreted on the CPU.

`test_diffusion_kernels.py` runs this in a process with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos_triton.kernels.attention import choose_attention
from cosmos_triton.kernels.elementwise import quantise_rows
from cosmos_triton.kernels.frame_norm import frame_norm
from cosmos_triton.kernels.fused_tokenizer import fuse_tokenizer
from cosmos_triton.kernels.fused_transformer import FusedTransformer
from cosmos_triton.networks.diffusion_transformer import PRESETS, DiffusionTransformer
from cosmos_triton.networks.int8 import DIFFUSION_QUANTISED, quantise
from cosmos_triton.networks.tokenizer import PRESETS as TOKENIZERS
from cosmos_triton.networks.tokenizer import ContinuousDecoder, DiscreteEncoder, TokenizerConfig
from cosmos_triton.networks.tokenizer_layers import repeat_first_frame
from cosmos_triton.runtime.diffusion.sampler import guided_outputs
from cosmos_triton.runtime.residency import Placement, Residency

CONFIG = replace(PRESETS["tiny"], dim=48, n_heads=3, n_blocks=1)  # widths that are no powers of two


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def random_network(n_blocks: int = 1) -> DiffusionTransformer:
    torch.manual_seed(0)
    network = DiffusionTransformer(replace(CONFIG, n_blocks=n_blocks)).requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=2 * parameter.shape[-1] ** -0.5)
        else:
            parameter.uniform_(0.5, 1.5)
    return network


def clip(batch: int = 1, *, width: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(batch, CONFIG.latent_channels, 1, 2, 2 * width)
    tokens = torch.randint(CONFIG.token_vocab_size, (batch, 1, 1, width))
    return x, tokens, torch.randn(batch, 5, CONFIG.context_dim), torch.linspace(-1, 1, batch)


def fused(network: DiffusionTransformer, *, fp8: bool = False) -> FusedTransformer:
    attention = choose_attention("cpu", torch.float32, heads=3, head_dim=16)
    return FusedTransformer(network, attention, fp8_on="cpu" if fp8 else None)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("form", "batch", "tolerance"), [("as given", 1, 1e-6), ("as given", 2, 1e-6), ("int8", 1, 1e-6), ("fp8", 1, 0.12)]
)
def test_a_guided_evaluation_is_the_plain_one(form: str, batch: int, tolerance: float) -> None:
    """Interpreted, numbers are cut to fp8 and not rounded."""
    network = random_network()
    if form == "int8":
        quantise(network, DIFFUSION_QUANTISED)
    x, tokens, context, c_noise = clip(batch)
    expected = guided_outputs(network, tokens, context)(x, c_noise)
    found = guided_outputs(fused(network, fp8=form == "fp8"), tokens, context)(x, c_noise)
    assert found.shape == expected.shape == (2 * batch, *x.shape[1:])
    assert error(found, expected) < tolerance


@torch.inference_mode()
def test_called_like_the_plain_network_it_is_the_plain_network() -> None:
    network = random_network()
    x, tokens, context, c_noise = clip(2)
    expected = network(x, tokens, context, c_noise)
    assert error(fused(network)(x, tokens, context, c_noise), expected) < 1e-6


@torch.inference_mode()
@pytest.mark.parametrize(("residency", "fp8"), [("offloaded", False), ("streamed", False), ("streamed", True)])
def test_offloaded_and_streamed_weights_give_the_same_bits(residency: Residency, fp8: bool) -> None:
    x, tokens, context, c_noise = clip(width=1)
    expected = guided_outputs(fused(random_network(3), fp8=fp8), tokens, context)(x, c_noise)
    placement, network = Placement("cpu", residency), fused(random_network(3), fp8=fp8)
    placement.put(network, network.blocks)
    with placement.on_device():
        assert torch.equal(guided_outputs(network, tokens, context)(x, c_noise), expected)


@torch.inference_mode()
@pytest.mark.parametrize("gelu", [False, True])
def test_rows_are_quantised_each_by_its_largest_element(gelu: bool) -> None:
    x = torch.randn(5, 200) * torch.logspace(-3, 2, 5)[:, None]
    x[2] = 0
    out = quantise_rows(x, gelu=gelu)
    expected = F.gelu(x) if gelu else x
    largest = expected.abs().amax(dim=1)
    torch.testing.assert_close(out.scale, largest.clamp(min=1e-12) / 448, rtol=1e-5, atol=0)
    assert ((out.data.float() * out.scale[:, None] - expected).abs().amax(dim=1) <= largest / 7).all()


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(2, 24, 2, 3, 5), (1, 8, 1, 32, 40)])
@pytest.mark.parametrize(("silu", "lead"), [(False, 0), (True, 2)])
def test_frame_norm(shape: tuple[int, ...], silu: bool, lead: int) -> None:
    """Frames in one piece and in several; far from zero, where a sum of squares would lose the variance."""
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(1, shape[1], eps=1e-6)
    torch.nn.init.uniform_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(shape) + 30
    frames = deepcopy(norm).double()(x.double().transpose(1, 2).flatten(0, 1))
    frames = frames.unflatten(0, (shape[0], shape[2])).transpose(1, 2)
    expected = repeat_first_frame(F.silu(frames) if silu else frames, lead) if lead else frames
    found = frame_norm(x, norm, silu=silu, lead=lead)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert error(found, expected) < 1e-5


SMALL: dict[str, TokenizerConfig] = {
    name: replace(config, channels=4, num_res_blocks=1)
    for name, config in TOKENIZERS.items()
    if name.startswith("tiny")
}


@torch.inference_mode()
def test_fused_decoder_is_the_plain_one() -> None:
    torch.manual_seed(0)
    network = ContinuousDecoder(SMALL["tiny-cv"]).requires_grad_(False)
    latents = torch.randn(1, 16, 2, 1, 2)
    expected, keys = network(latents), network.state_dict().keys()
    fuse_tokenizer(network)
    assert network.state_dict().keys() == keys
    assert error(network(latents), expected) < 1e-5


@torch.inference_mode()
def test_fused_encoder_is_the_plain_one() -> None:
    torch.manual_seed(0)
    network = DiscreteEncoder(SMALL["tiny-dv"]).requires_grad_(False)
    video = torch.randn(1, 3, 9, 16, 16)
    expected = network.latents(video)
    assert error(fuse_tokenizer(network).latents(video), expected) < 1e-5
