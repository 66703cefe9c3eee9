"""The table that plans are made from is what the networks say, at full size, and what the released files hold."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import asdict

import pytest
import torch
from unit.test_manifests import AR, UNUSED

from cosmos_triton.planning.footprint_count import LiveBytes, count, gpu_decoder, subjects
from cosmos_triton.planning.footprints import FILE, FOOTPRINTS, as_json, footprint_key
from cosmos_triton.planning.memory_plan import plan_memory
from cosmos_triton.planning.stage_options import LIBRARY_WORKSPACE
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.residency import OffloadedWeights, Placement
from support.paths import RELEASED_MANIFESTS

KEYS = {footprint_key(d, kind): (d, kind) for d in DEPLOYMENTS.values() for kind in subjects(d)}


@pytest.mark.parametrize("key", KEYS)
def test_table_is_what_a_run_on_shapes_counts(key: str) -> None:
    deployment, kind = KEYS[key]
    counted = count(subjects(deployment)[kind])
    assert asdict(counted) == asdict(FOOTPRINTS[key])


@pytest.mark.parametrize("deployment", ["4b", "13b-video2world"])
def test_a_prefill_takes_more_than_the_widest_step(deployment: str) -> None:
    """So the plan need not know the speculation window: 8 slots, 64 tokens each."""
    subject = subjects(DEPLOYMENTS[deployment])["ar"]
    with torch.device("meta"):
        network = subject.build().to("meta", subject.dtype).requires_grad_(False)
    decoder = gpu_decoder(network, slots=8, window=64)
    with torch.inference_mode(), LiveBytes() as live:
        decoder.step()
    assert live.peak < FOOTPRINTS[footprint_key(DEPLOYMENTS[deployment], "ar")].activations


def test_table_has_no_network_that_nothing_uses() -> None:
    assert set(FOOTPRINTS) == set(KEYS)
    assert FILE.read_text() == as_json(FOOTPRINTS)


# Released file, its network, and bytes of a parameter as the network has it on a GPU.
FILES = {
    **{file: (f"ar {preset}", 2) for preset, file in AR.items()},
    "Cosmos-1.0-Tokenizer-DV8x16x16/encoder.jit": ("discrete_encoder dv8x16x16", 2),
    "Cosmos-1.0-Tokenizer-DV8x16x16/decoder.jit": ("discrete_decoder dv8x16x16", 2),
    "Cosmos-1.0-Tokenizer-CV8x8x8/decoder.jit": ("continuous_decoder cv8x8x8", 2),
    "Cosmos-1.0-Diffusion-7B-Decoder-DV8x16x16ToCV8x8x8/model.pt": ("diffusion 7b-decoder", 2),
    "Cosmos-1.0-Guardrail/face_blur_filter/Resnet50_Final.pth": ("face_detector resnet50", 4),
    "google-t5/t5-11b (encoder part)": ("t5 t5-11b", 2),
}


@pytest.mark.parametrize("file", FILES)
def test_weights_are_those_of_the_released_file(file: str) -> None:
    """The table has a little more: position tables, which the AR models compute."""
    key, bytes_each = FILES[file]
    keys = json.loads(gzip.decompress(RELEASED_MANIFESTS.read_bytes()))["files"][file]["keys"]
    released = sum(math.prod(shape) * bytes_each for name, (shape, _) in keys.items() if not name.startswith(UNUSED))
    assert released <= FOOTPRINTS[key].weights * 1.0001  # counters of batch norms are wider
    assert FOOTPRINTS[key].weights - released < 0.013 * released


@pytest.mark.parametrize(("stage", "kind"), [("diffusion_decoder", "diffusion"), ("text_encoder", "t5")])
def test_streamed_network_at_work_takes_what_the_plan_gives_it(stage: str, kind: str) -> None:
    """A real run, its tensors counted as they live and die."""
    deployment = DEPLOYMENTS["tiny-video2world"]
    planned = next(s for s in plan_memory(deployment, 0).stages if s.stage == stage)
    assert planned.mode == "streamed"
    subject = subjects(deployment)[kind]
    network = subject.build().to(subject.dtype).requires_grad_(False).eval()
    placement = Placement("cpu", "streamed")
    placement.put(network, subject.blocks(network))
    with torch.inference_mode(), placement.on_device(), LiveBytes() as live:
        subject.run(network, torch.zeros, planned.batch)
    [weights] = placement.offloadables
    assert isinstance(weights, OffloadedWeights)
    assert live.peak + weights.device_bytes <= planned.workspace_bytes - LIBRARY_WORKSPACE


def test_live_bytes_are_those_of_tensors_that_are_alive() -> None:
    weight = torch.ones(100, 100)
    with LiveBytes() as live:
        x = torch.ones(100, 100)
        y = x @ weight  # x, y
        del x
        z = torch.cat([y, y.t()])  # y, and twice as much; the view costs nothing
        del y, z
    assert live.peak == 3 * 40_000
    assert live.now == 0
