"""The metrics page counts what clients were answered, and how long it really took. docs/metrics.md says so."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from cosmos_triton.client import InvalidInput
from cosmos_triton.pipeline.errors import CODES
from cosmos_triton.runtime.stages import STAGES
from support.pipeline_server import STOP_SECONDS, PipelineServer, follow
from support.server import until

BAD_MEDIA: list[dict[str, Any]] = [{"visual_input": b"not a film"}, {"visual_input": b""}, {"num_input_frames": 2}]
DURATION = "cosmos_request_seconds"
LABELS = r'\{code="(?P<code>\w+)",model="(?P<model>\w+)",process="\d+"\}'


def requests(server: PipelineServer) -> Counter[tuple[str, str]]:
    """By model and code."""
    counts: Counter[tuple[str, str]] = Counter()
    for name, value in server.metrics().items():
        if labels := re.fullmatch(f"cosmos_requests{LABELS}", name):
            counts[labels["model"], labels["code"]] += int(value)
    return counts


def seconds(server: PipelineServer, model: str, name: str = DURATION, **labels: str) -> float:
    return server.counted(f"{name}_sum", model=model, **labels)


@pytest.mark.parametrize(("model", "protocol"), [("world_generation", "grpc"), ("world_generation_stream", "grpc")])
def test_three_bad_and_two_good_requests_are_three_failures_and_two_successes(
    base: PipelineServer, model: str, protocol: str
) -> None:
    before = requests(base)
    for bad in BAD_MEDIA:
        with pytest.raises((InferenceServerException, InvalidInput)):
            base.infer(protocol, **bad) if model == "world_generation" else base.generate(**bad)
    for seed in range(2):
        good: dict[str, Any] = {"seed": seed, "disable_diffusion_decoder": True}
        _ = base.infer(protocol, **good) if model == "world_generation" else base.generate(**good)
    counted = requests(base) - before
    stages = ("video_tokenizer_encoder", "ar_sampler", "video_tokenizer_decoder", "video_guardrail", "media_encoder")
    assert counted == Counter(
        {
            (model, "INVALID_ARG"): 3,
            (model, "OK"): 2,
            ("media_decoder", "INVALID_ARG"): 2,  # the number of frames is refused before
            ("media_decoder", "OK"): 2,
        }
        | {(stage, "OK"): 2 for stage in stages}
    )


def test_durations_are_those_of_the_report(base: PipelineServer) -> None:
    """Of models too that answer after their `execute` has returned."""
    stages = [name for name, spec in STAGES.items() if spec.is_in(base.deployment) and not spec.is_entry]
    stages.remove("video_tokenizer_decoder")
    before = {model: seconds(base, model, code="OK") for model in (*stages, "world_generation_stream")}
    waited = {stage: seconds(base, stage, "cosmos_request_wait_seconds") for stage in stages}
    report = base.generate(seed=11).report["seconds"]
    assert seconds(base, "world_generation_stream", code="OK") - before.pop("world_generation_stream") == pytest.approx(
        report["total"], abs=0.05
    )
    for stage, earlier in before.items():
        worked = seconds(base, stage, code="OK") - earlier
        wait = seconds(base, stage, "cosmos_request_wait_seconds") - waited[stage]
        assert 0 < worked <= report[stage] + 0.001, stage
        assert wait > 0, stage
        assert worked + wait > 0.5 * report[stage] - 0.1, stage  # the rest is the way there and back


def test_a_cancelled_clip_counts_as_cancelled(base: PipelineServer) -> None:
    before = requests(base)
    with base.stream() as updates:
        follow(updates, "ar_sampler")
    expected = {("world_generation_stream", "CANCELLED"), ("ar_sampler", "CANCELLED")}
    until(lambda: expected <= set(requests(base) - before), seconds=5 * STOP_SECONDS)
    counted = requests(base) - before
    assert {key: counted[key] for key in expected} == dict.fromkeys(expected, 1)
    assert not counted["ar_sampler", "OK"]


def test_counters_and_histograms_agree(base: PipelineServer) -> None:
    base.generate(disable_diffusion_decoder=True)
    page = base.metrics()
    found = {labels["code"] for name in page if (labels := re.fullmatch(f"cosmos_requests{LABELS}", name))}
    assert {"OK"} <= found <= set(CODES)
    for name, value in page.items():
        if name.startswith(f"{DURATION}_count"):
            assert page[name.replace(f"{DURATION}_count", "cosmos_requests")] == value
