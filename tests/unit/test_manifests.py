"""At full size every network has the keys and shapes of its released file, no more and no less."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cosmos_triton.networks import (
    ar_config,
    diffusion_transformer,
    retinaface,
    text_encoder,
    tokenizer,
    video_safety,
)
from cosmos_triton.networks.ar_transformer import ARTransformer
from cosmos_triton.networks.diffusion_transformer import DiffusionTransformer
from cosmos_triton.networks.retinaface import RetinaFace
from cosmos_triton.networks.text_encoder import build_text_encoder
from cosmos_triton.networks.video_safety import VideoSafety
from cosmos_triton.runtime.checkpoints import network_shapes
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from support.paths import RELEASED_MANIFESTS

AR = {d.ar_preset: f"{d.ar_folder}/model.pt" for d in DEPLOYMENTS.values() if not d.name.startswith("tiny")}
DV, CV = "Cosmos-1.0-Tokenizer-DV8x16x16", "Cosmos-1.0-Tokenizer-CV8x8x8"
# File, the network of it, and what the loader strips from the keys in front.
RELEASED: list[tuple[str, Callable[[Any], nn.Module], Any, str]] = [
    *((file, ARTransformer, ar_config.PRESETS[preset], "model.") for preset, file in AR.items()),
    (f"{DV}/encoder.jit", tokenizer.DiscreteEncoder, tokenizer.PRESETS["dv8x16x16"], ""),
    (f"{DV}/decoder.jit", tokenizer.DiscreteDecoder, tokenizer.PRESETS["dv8x16x16"], ""),
    (f"{CV}/encoder.jit", tokenizer.ContinuousEncoder, tokenizer.PRESETS["cv8x8x8"], ""),
    (f"{CV}/decoder.jit", tokenizer.ContinuousDecoder, tokenizer.PRESETS["cv8x8x8"], ""),
    (
        "Cosmos-1.0-Diffusion-7B-Decoder-DV8x16x16ToCV8x8x8/model.pt",
        DiffusionTransformer,
        diffusion_transformer.PRESETS["7b-decoder"],
        "net.",
    ),
    (
        "Cosmos-1.0-Guardrail/video_content_safety_filter/safety_filter.pt",
        VideoSafety,
        video_safety.PRESETS["siglip-so400m"],
        "",
    ),
    ("Cosmos-1.0-Guardrail/face_blur_filter/Resnet50_Final.pth", RetinaFace, retinaface.PRESETS["resnet50"], "module."),
    ("google-t5/t5-11b (encoder part)", build_text_encoder, text_encoder.PRESETS["t5-11b"], ""),
]
UNUSED = ("logvar.", "net.pos_embedder.seq")  # of the diffusion decoder: they have no part in decoding


@pytest.mark.parametrize(("file", "build", "config", "prefix"), RELEASED, ids=[entry[0] for entry in RELEASED])
def test_keys_and_shapes_are_the_released_ones(
    file: str, build: Callable[[Any], nn.Module], config: Any, prefix: str
) -> None:
    released = json.loads(gzip.decompress(RELEASED_MANIFESTS.read_bytes()))["files"][file]["keys"]
    expected = {
        key.removeprefix(prefix): tuple(shape) for key, (shape, _) in released.items() if not key.startswith(UNUSED)
    }
    with torch.device("meta"):
        network = build(config)
    assert network_shapes(network) == expected


def test_every_released_network_is_covered() -> None:
    files = set(json.loads(gzip.decompress(RELEASED_MANIFESTS.read_bytes()))["files"])
    tables = {f"{CV}/mean_std.pt", "Cosmos-1.0-Diffusion-7B-Decoder-DV8x16x16ToCV8x8x8/aux_vars.pt"}
    assert files - tables == {entry[0] for entry in RELEASED}
