"""The option --precision: what it accepts, what the plan makes of it, and where it is refused."""

from __future__ import annotations

import pytest

from cosmos_triton.planning.memory_plan import plan_memory
from cosmos_triton.planning.precision_choice import parse_precisions
from cosmos_triton.planning.stage_options import StagePlan
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.fp8_support import require_precision, supported_precisions


def decoder_plan(*choices: str, weights_8bit: bool = False, gpu_memory_gb: float = 80) -> StagePlan:
    precisions = parse_precisions(choices)
    plan = plan_memory(DEPLOYMENTS["4b"], gpu_memory_gb, weights_8bit=weights_8bit, precisions=precisions)
    return next(stage for stage in plan.stages if stage.stage == "diffusion_decoder")


def test_the_last_choice_of_a_stage_counts() -> None:
    assert parse_precisions([]) == {}
    assert parse_precisions(["diffusion_decoder=fp8", "diffusion_decoder=bf16"]) == {"diffusion_decoder": "bf16"}


@pytest.mark.parametrize(
    ("choice", "accepted"),
    [
        ("fp8", "STAGE=PRECISION with STAGE of diffusion_decoder"),
        ("ar_sampler=fp8", "STAGE=PRECISION with STAGE of diffusion_decoder"),
        ("diffusion_decoder", "diffusion_decoder=PRECISION with PRECISION of bf16, fp8, fp8-attention"),
        ("diffusion_decoder=fp4", "diffusion_decoder=PRECISION with PRECISION of bf16, fp8, fp8-attention"),
    ],
)
def test_anything_else_is_refused_in_one_line(choice: str, accepted: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        parse_precisions([choice])
    assert str(refused.value) == f"--precision: value {choice}; accepted: {accepted}"


def test_fp8_weights_take_little_more_than_half() -> None:
    exact, short = decoder_plan(), decoder_plan("diffusion_decoder=fp8")
    assert (exact.precision, short.precision) == ("bf16", "fp8")
    assert 6.4e9 < exact.resident_bytes - short.resident_bytes < 6.7e9
    assert decoder_plan("diffusion_decoder=fp8-attention").precision == "fp8-attention"


@pytest.mark.parametrize("gpu_memory_gb", [80, 24, 16, 12])
def test_what_was_asked_for_is_what_the_stage_has(gpu_memory_gb: float) -> None:
    """Whatever the memory, and whether or not 8-bit weights are allowed."""
    assert decoder_plan("diffusion_decoder=fp8", weights_8bit=True, gpu_memory_gb=gpu_memory_gb).precision == "fp8"
    assert decoder_plan("diffusion_decoder=bf16", weights_8bit=True, gpu_memory_gb=gpu_memory_gb).precision == "bf16"


def test_a_device_without_fp8_refuses_it_by_name() -> None:
    assert supported_precisions("cpu") == ()
    require_precision("bf16", "cpu")
    with pytest.raises(InvalidValue) as refused:
        require_precision("fp8", "cpu", name="--precision diffusion_decoder")
    accepted = "bf16; fp8 needs a GPU of compute capability 8.9 or more"
    assert str(refused.value) == f"--precision diffusion_decoder: value fp8; accepted: {accepted}"
