"""What a request may ask for, and what is filled in where it says nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.generation_request import MAX_PROMPT_BYTES, GenerationRequest

BASE, TEXT = DEPLOYMENTS["12b"], DEPLOYMENTS["5b-video2world"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=DEPLOYMENTS)
def test_what_is_left_out_is_the_deployments_default(deployment: Any) -> None:
    prompt = "a street" if deployment.is_video2world else None
    request = GenerationRequest.checked(deployment, prompt=prompt)
    assert request.top_p == deployment.top_p
    assert (request.temperature, request.seed) == (1.0, 0)
    assert request.num_input_frames is None
    assert request.disable_diffusion_decoder is False


@pytest.mark.parametrize(
    "given",
    [
        {"top_p": 1.0},
        {"top_p": 1e-6},
        {"temperature": 0.0},
        {"temperature": 10.0},
        {"seed": 2**63 - 1},
        {"num_input_frames": 1},
        {"num_input_frames": 9},
        {"disable_diffusion_decoder": True},
    ],
    ids=str,
)
def test_what_is_accepted_is_used_as_given(given: dict[str, Any]) -> None:
    request = GenerationRequest.checked(BASE, **given)
    for name, value in given.items():
        assert getattr(request, name) == value
        assert request.parameters()[name] == value


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("top_p", 0.0, "0.0"),
        ("top_p", np.nextafter(np.float32(1), np.float32(2)).item(), "1.0"),
        ("top_p", math.nan, "nan"),
        ("top_p", np.float32(-0.1).item(), "-0.1"),
        ("temperature", np.float32(-0.1).item(), "-0.1"),
        ("temperature", 10.5, "10.5"),
        ("temperature", math.nan, "nan"),
        ("temperature", math.inf, "inf"),
        ("seed", -1, "-1"),
        ("num_input_frames", 0, "0"),
        ("num_input_frames", 2, "2"),
        ("prompt", "a street", "given"),
    ],
)
def test_what_is_not_accepted_is_named(name: str, value: Any, named: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        GenerationRequest.checked(BASE, **{name: value})
    assert str(caught.value).startswith(f"{name}: value {named}; accepted: ")


def test_prompt_is_required_where_it_is_used_and_bounded_in_bytes() -> None:
    longest = "é" * (MAX_PROMPT_BYTES // 2)
    assert GenerationRequest.checked(TEXT, prompt=longest).prompt == longest
    empty = [(prompt, "empty") for prompt in ("", " \t\n", "\u200b \ufeff\u2060", "\x00\x07", "\u00ad\u3000")]
    long = [(prompt, "100001 bytes") for prompt in (longest + "e", " " * 100_001)]
    for prompt, named in (*empty, (None, "missing"), *long):
        with pytest.raises(InvalidValue) as caught:
            GenerationRequest.checked(TEXT, prompt=prompt)
        assert str(caught.value).startswith(f"prompt: value {named}; accepted: ")


def test_prompt_is_not_among_the_parameters_of_the_report() -> None:
    parameters = GenerationRequest.checked(TEXT, prompt="a street").parameters()
    assert "a street" not in str(parameters)


def test_report_shows_numbers_as_they_were_written() -> None:
    request = GenerationRequest.checked(BASE, top_p=np.float32(0.9).item(), temperature=np.float32(0.7).item())
    assert request.top_p != 0.9  # sampling sees what was sent
    assert (request.parameters()["top_p"], request.parameters()["temperature"]) == (0.9, 0.7)
