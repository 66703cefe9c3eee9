"""8-bit weights: how far they are off, and that only what is named gets them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cosmos_triton.networks import diffusion_transformer
from cosmos_triton.networks.diffusion_transformer import DiffusionTransformer
from cosmos_triton.networks.int8 import AR_QUANTISED, DIFFUSION_QUANTISED, Int8Linear, quantise
from support.tiny_models import AR_CONFIGS, random_transformer


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_weight_is_off_by_half_a_step_of_its_row_at_most(dtype: torch.dtype) -> None:
    linear = nn.Linear(64, 33, bias=False).to(dtype)
    linear.weight[:] *= torch.logspace(-3, 3, 33)[:, None].to(dtype)  # rows of very different size
    short = Int8Linear(linear)
    restored = short(torch.eye(64, dtype=dtype)).t().double()
    largest = linear.weight.double().abs().amax(dim=1, keepdim=True)
    # A step is 1/127 of the largest; the scale and the product are rounded to the dtype as well.
    bound = largest / 127 / 2 + largest * torch.finfo(dtype).eps
    assert ((restored - linear.weight.double()).abs() <= bound).all()
    assert short.weight.dtype == torch.int8
    assert short(torch.ones(2, 64, dtype=dtype)).dtype == dtype


@torch.inference_mode()
def test_row_of_zeros_stays_zero() -> None:
    linear = nn.Linear(8, 3, bias=False)
    linear.weight[1] = 0
    assert (Int8Linear(linear)(torch.ones(1, 8))[0, 1] == 0).all()


def test_products_of_the_ar_model_are_short_and_nothing_else() -> None:
    network = random_transformer(AR_CONFIGS["video2world"])
    quantise(network, AR_QUANTISED)
    assert not any(isinstance(module, nn.Linear) for module in network.modules())
    assert isinstance(network.output, Int8Linear)
    assert network.tok_embeddings.weight.dtype == torch.float32
    assert network.norm.weight.dtype == torch.float32


def test_blocks_of_the_diffusion_network_are_short_and_nothing_else() -> None:
    network = DiffusionTransformer(diffusion_transformer.PRESETS["tiny"])
    quantise(network, DIFFUSION_QUANTISED)
    assert not any(isinstance(module, nn.Linear) for module in network.blocks.modules())
    assert any(isinstance(module, nn.Linear) for module in network.final_layer.modules())
