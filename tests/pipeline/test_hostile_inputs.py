"""What must not be worked on is refused at once, says why, and harms nobody."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from cosmos_triton.client import InvalidInput
from cosmos_triton.tiny.guardrails import BLOCKED_WORD
from support import media_files as files
from support.long_prompts import long_prompts
from support.pipeline_server import CLIP, STILL, PipelineServer

REFUSAL_SECONDS = 2.0
STATUS = {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}

MEDIA: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "text": (b"not a film at all\n" * 40, "unknown format"),
    "truncated clip": (CLIP[: len(CLIP) // 2], "should end"),
    "truncated image": (STILL[:-20], "cut inside"),
    "100 megapixels": (files.png_bomb(), "10000x10000 pixels"),
    "audio only": (files.audio_only(), "none of them video"),
    "10000 frames": (files.clip(files.numbered(1, 16, 16).repeat(10_000, axis=0)), "10000 frames"),
}
PARAMETERS: list[tuple[str, dict[str, Any], str, str]] = [  # model, inputs, field, the value as it is named
    ("video2world", {"prompt": None}, "prompt", "missing"),
    ("video2world", {"prompt": b""}, "prompt", "empty"),
    ("video2world", {"prompt": b" \n"}, "prompt", "empty"),
    ("video2world", {"prompt": b"\xff\xfe"}, "prompt", "bytes that are not UTF-8"),
    ("video2world", {"prompt": b"a" * 100_001}, "prompt", "100001 bytes"),
    ("base", {"prompt": b"a tractor"}, "prompt", "given"),
    ("base", {"prompt": b""}, "prompt", "given"),
    ("base", {"top_p": 0.0}, "top_p", "0.0"),
    ("base", {"top_p": 1.5}, "top_p", "1.5"),
    ("base", {"top_p": -0.1}, "top_p", "-0.1"),
    ("base", {"top_p": math.nan}, "top_p", "nan"),
    ("base", {"temperature": -1.0}, "temperature", "-1.0"),
    ("base", {"temperature": math.nan}, "temperature", "nan"),
    ("base", {"temperature": math.inf}, "temperature", "inf"),
    ("base", {"num_input_frames": 2}, "num_input_frames", "2"),
    ("base", {"num_input_frames": 0}, "num_input_frames", "0"),
    ("base", {"num_input_frames": -(2**31)}, "num_input_frames", "-2147483648"),
    ("base", {"num_input_frames": 9, "visual_input": STILL}, "num_input_frames", "9 of an image"),
    ("base", {"seed": -1}, "seed", "-1"),
]
CASES = {
    **{f"{name} media": ("base", {"visual_input": data}, "visual_input", part) for name, (data, part) in MEDIA.items()},
    **{f"{model} {field} {value}": (model, inputs, field, value) for model, inputs, field, value in PARAMETERS},
}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("case", CASES)
def test_refused_at_once_with_field_value_and_what_is_accepted(
    request: pytest.FixtureRequest, case: str, protocol: str
) -> None:
    model, inputs, field, value = CASES[case]
    server: PipelineServer = request.getfixturevalue(model)
    began = time.monotonic()
    with pytest.raises(InferenceServerException) as caught:
        server.infer(protocol, **inputs)
    assert time.monotonic() - began < REFUSAL_SECONDS
    assert caught.value.status() == STATUS[protocol]
    message = re.fullmatch(
        r"\[INVALID_ARG\] (?P<field>\w+): value (?P<value>.+); accepted: .+", caught.value.message(), re.DOTALL
    )
    assert message, caught.value.message()
    assert message["field"] == field
    assert re.search(value.replace("(", r"\("), message["value"])


@pytest.mark.parametrize("name", MEDIA)
def test_next_request_works(base: PipelineServer, name: str) -> None:
    with pytest.raises(InferenceServerException):
        base.infer("grpc", visual_input=MEDIA[name][0])
    assert base.generate(visual_input=STILL, disable_diffusion_decoder=True).report["outcome"] == "generated"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_client_is_told_what_is_wrong(base: PipelineServer, protocol: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes.mp4"
    notes.write_text("a shopping list")
    with pytest.raises(InvalidInput) as caught:
        base.generate(protocol, visual_input=notes)
    assert caught.value.field == "visual_input"
    assert "unknown format" in (caught.value.value or "")
    assert "mp4" in (caught.value.accepted or "")
    with pytest.raises(InvalidInput) as caught:
        base.generate(protocol, top_p=1.5)
    assert (caught.value.field, caught.value.value) == ("top_p", "1.5")


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"visual_input": np.array([[CLIP]], np.object_)},
        {"visual_input": np.array([CLIP], np.object_), "seed": np.array([1, 2])},
        {"visual_input": np.array([CLIP], np.object_), "seed": np.array([1.0], np.float32)},
        {"visual_input": np.array([CLIP], np.object_), "sed": np.array([1])},
    ],
    ids=["nothing", "shape", "two seeds", "type", "name"],
)
def test_wrong_tensors_are_refused(base: PipelineServer, tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(InferenceServerException) as caught:
        base.infer_model("world_generation", **tensors)
    assert caught.value.status() == STATUS["grpc"]


def test_prompts_that_want_to_be_misread_are_decided(video2world: PipelineServer) -> None:
    hidden = "bl\u043e\u200bckedWORD"  # a Cyrillic letter, and one of no width
    long = long_prompts()
    prompts = [long["signs"], long["zero width"], f"a {hidden}", f"\u202e{BLOCKED_WORD.upper()}", "\u673a\u5668\u4eba"]
    answers = [video2world.infer_stage("text_guardrail", prompt=np.array([p.encode()], np.object_)) for p in prompts]
    categories = [json.loads(answer["verdict"][0])["checks"][-1]["categories"] for answer in answers]
    assert ["guardrail_error"] not in categories
    assert categories[-3:] == [["custom"], ["custom"], []]


@pytest.mark.parametrize("model", ["base", "video2world"])
def test_nobody_was_harmed(request: pytest.FixtureRequest, model: str) -> None:
    """After all of the above."""
    server: PipelineServer = request.getfixturevalue(model)
    assert server.generate(disable_diffusion_decoder=True).report["outcome"] == "generated"
    assert " died: " not in server.log
