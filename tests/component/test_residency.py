"""Offloaded and streamed weights: outputs equal to the bit, the promised device memory, and all of it freed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from cosmos_triton.networks import diffusion_transformer, text_encoder, tokenizer
from cosmos_triton.networks.diffusion_transformer import DiffusionTransformer
from cosmos_triton.networks.int8 import AR_QUANTISED, quantise
from cosmos_triton.networks.tokenizer import DiscreteDecoder
from cosmos_triton.runtime.residency import OffloadedWeights, Placement, Residency
from cosmos_triton.runtime.stage_loader import place_ar_decoder
from support.tiny_models import AR_CONFIGS, random_request, random_transformer


def ids(network: nn.Module) -> Tensor:
    return network(input_ids=torch.arange(24)[None])[0]


def denoised(network: DiffusionTransformer) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 8, 4, 4, generator=generator)
    tokens = torch.randint(1000, (2, 8, 2, 2), generator=generator)
    return network(x, tokens, torch.randn(2, 6, 32, generator=generator), torch.tensor([0.1, 0.2]))


TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
# For each: how it is built, its blocks, and one forward.
NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], Tensor]]] = {
    "diffusion": (
        lambda: DiffusionTransformer(diffusion_transformer.PRESETS["tiny"]),
        lambda network: network.blocks.values(),
        denoised,
    ),
    "t5": (
        lambda: text_encoder.build_text_encoder(text_encoder.PRESETS["tiny"]),
        lambda network: network.encoder.block,
        ids,
    ),
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=5, **TOWER)),
        lambda network: network.model.layers,
        ids,
    ),
    "siglip": (
        lambda: SiglipVisionModel(SiglipVisionConfig(image_size=32, patch_size=8, num_hidden_layers=3, **TOWER)),
        lambda network: network.encoder.layers,
        lambda network: network(pixel_values=torch.linspace(-1, 1, 3072).view(1, 3, 32, 32)).pooler_output,
    ),
    "tokenizer": (
        lambda: DiscreteDecoder(tokenizer.PRESETS["tiny-dv"]),
        lambda network: (),
        lambda network: network(torch.arange(5 * 2 * 2).view(1, 5, 2, 2)),
    ),
}


def made(name: str) -> Any:
    torch.manual_seed(0)
    network = NETWORKS[name][0]().eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return network


@torch.no_grad()
@pytest.mark.parametrize("residency", ["streamed", "offloaded"])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_resident_weights_to_the_bit(name: str, residency: Residency) -> None:
    _, blocks, ask = NETWORKS[name]
    expected = ask(made(name))
    network = made(name)
    placement = Placement("cpu", residency)
    assert placement.put(network, blocks(network)) is network
    for _ in range(2):  # loaded again after an offload
        with placement.on_device():
            assert torch.equal(ask(network), expected)
            assert torch.equal(ask(network), expected)
        assert held_bytes(network) == 0


def held_bytes(network: nn.Module) -> int:
    storages = [tensor.untyped_storage() for tensor in (*network.parameters(), *network.buffers())]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


@torch.inference_mode()
@pytest.mark.parametrize("streamed", [0, 1, 2])
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("name", AR_CONFIGS)
def test_a_clip_has_the_same_tokens_wherever_the_ar_models_weights_are(
    name: str, eight_bit: bool, streamed: int
) -> None:
    """With fused projections, whose weights share memory, and projections that run outside of their layer's forward."""
    clips = []
    for placement in (Placement("cpu"), Placement("cpu", "streamed", streamed_blocks=streamed)):
        with torch.inference_mode(False):
            network = random_transformer(AR_CONFIGS[name])
            if eight_bit:
                quantise(network, AR_QUANTISED)
            decoder = place_ar_decoder(network, placement, slots=2)
        for _ in range(2):
            with placement.on_device():
                for _ in decoder.prefill(1, random_request(network.config)):
                    pass
                for _ in range(decoder.clip_length):
                    decoder.step()
                clips.append(decoder.tokens(1))
    assert all(torch.equal(clip, clips[0]) for clip in clips)
    assert decoder.cache.k.untyped_storage().nbytes() == 0


@torch.no_grad()
def test_streaming_holds_two_blocks_and_what_is_not_streamed() -> None:
    network = made("llama")
    whole = held_bytes(network)
    block = held_bytes(network.model.layers[0])
    weights = OffloadedWeights(network, list(network.model.layers), streamed=5, device="cpu")
    assert 0 <= weights.device_bytes - (whole - 3 * block) < 40 * 256  # each tensor on an aligned address
    weights.load()
    assert held_bytes(network) == weights.device_bytes
    weights.offload()


@torch.no_grad()
def test_a_block_out_of_order_is_refused_and_does_not_run_on_anothers_weights() -> None:
    network = made("llama")
    placement = Placement("cpu", "streamed")
    placement.put(network, network.model.layers)
    with placement.on_device(), pytest.raises(RuntimeError, match="block 3 runs out of order"):
        network.model.layers[3](torch.zeros(1, 4, 32), position_embeddings=None)
    with placement.on_device():  # and the next run is not affected
        assert torch.equal(ids(network), ids(made("llama")))


@torch.no_grad()
@pytest.mark.parametrize("index", [3, 4])
def test_a_block_that_an_earlier_run_left_behind_is_not_taken_for_loaded(index: int) -> None:
    """Its buffer has been freed meanwhile."""
    network = made("llama")
    placement = Placement("cpu", "streamed")
    placement.put(network, network.model.layers)
    with placement.on_device():
        ids(network)  # the last two of five blocks stay in the buffers
    with placement.on_device(), pytest.raises(RuntimeError, match=f"block {index} runs out of order"):
        network.model.layers[index](torch.zeros(1, 4, 32), position_embeddings=None)


@torch.no_grad()
@pytest.mark.parametrize("streamed", range(6))
def test_the_last_blocks_are_streamed(streamed: int) -> None:
    """While those before them compute, their first are copied."""
    network = made("llama")
    expected = made("llama").state_dict()
    layers = list(network.model.layers)
    weights = OffloadedWeights(network, layers, streamed=streamed, device="cpu")
    weights.load()
    unstreamed = network.model.embed_tokens.weight.untyped_storage()._cdata
    assert [layer.mlp.up_proj.weight.untyped_storage()._cdata == unstreamed for layer in layers] == (
        [True] * (5 - streamed) + [False] * streamed
    )
    for name, weight in network.state_dict().items():
        if weight.untyped_storage()._cdata == unstreamed:
            assert torch.equal(weight, expected[name]), name
    weights.offload()


@torch.no_grad()
def test_device_memory_is_freed_after_an_error() -> None:
    network = made("t5")
    placement = Placement("cpu", "streamed")
    placement.put(network, network.encoder.block)
    with pytest.raises(KeyError), placement.on_device():
        raise KeyError
    assert held_bytes(network) == 0
