"""The settings of a stage: what is written is what is read, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.releases import PREDICT1
from cosmos_triton.runtime.stage_settings import StageSettings

LEAST = StageSettings(DEPLOYMENTS["4b"], Path("/check points"), "cuda")
FULL = StageSettings(
    DEPLOYMENTS["tiny"].of(PREDICT1),
    Path("/checkpoints"),
    "cpu",
    jobs_dir=Path("/jobs"),
    backend="onnxruntime",
    mode="streamed",
    precision="int8",
    gpu_memory_mib=1234,
    streamed_blocks=3,
    slots=8,
    window=4,
    max_queue_size=64,
    max_jobs=2,
)


@pytest.mark.parametrize("settings", [LEAST, FULL])
def test_what_is_written_is_what_is_read(settings: StageSettings) -> None:
    assert StageSettings.from_parameters(settings.to_parameters()) == settings


def test_only_what_is_set_is_written() -> None:
    """The rest is left to config.pbtxt."""
    always = {"deployment": "4b", "release": "cosmos-1.0", "checkpoint_dir": "/check points", "device": "cuda"}
    assert LEAST.to_parameters() == always
    assert FULL.to_parameters()["engine"] == "onnxruntime"


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("deployment", "5c", "4b, 12b"),
        ("release", "2.0", "cosmos-1.0, predict1"),
        ("device", "tpu", "cpu, cuda"),
        ("engine", "onnx", "torch, onnxruntime, tensorrt"),
        ("mode", "fast", "resident, streamed, offloaded, cpu"),
        ("precision", "fp4", "fp32, bf16, int8, fp8, fp8-attention"),
        ("slots", "many", "a whole number, 1 or more"),
        ("window", "0", "a whole number, 1 or more"),
        ("max_jobs", "-1", "a whole number, 1 or more"),
        ("gpu_memory_mib", "1.5", "a whole number, 1 or more"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str, accepted: str) -> None:
    with pytest.raises(InvalidValue, match=f"^{name}: value {value}; accepted: {accepted}"):
        StageSettings.from_parameters(FULL.to_parameters() | {name: value})


@pytest.mark.parametrize("name", ["deployment", "checkpoint_dir", "device", "max_jobs"])
def test_a_missing_value_is_named(name: str) -> None:
    parameters = FULL.to_parameters()
    del parameters[name]
    with pytest.raises(InvalidValue, match=f"^{name}: value missing; accepted: "):
        StageSettings.from_parameters(parameters, required=("max_jobs",))
