"""The guardrails of a prompt and of a video as a whole: order, fail-closed, and that nothing is remembered."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cosmos_triton.guardrail.face_blur import Blurred
from cosmos_triton.guardrail.judgement import PROMPT_CHECKS, VIDEO_CHECKS, Judgement, RequiredChecks
from cosmos_triton.guardrail.policy import Policy
from cosmos_triton.guardrail.prompt_guardrail import PromptGuardrail
from cosmos_triton.guardrail.verdict import Verdict
from cosmos_triton.guardrail.video_guardrail import VideoGuardrail

FRAMES = torch.full((3, 8, 8, 3), 90, dtype=torch.uint8)


class Check:
    """Says what it was told to say, and counts how often it was asked."""

    def __init__(self, name: str, says: Any = True) -> None:
        self.name = name
        self.says = says
        self.asked = 0

    def judge(self, _: Any) -> Any:
        self.asked += 1
        if isinstance(self.says, Exception):
            raise self.says
        if self.says is False:
            return Verdict.blocked(self.name, "bad", reason="no")
        return Verdict.passed(self.name) if self.says is True else self.says


class Blur:
    name = "face_blur"

    def __init__(self, result: Any) -> None:
        self.result = result

    def blur(self, frames: torch.Tensor) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def prompt_guardrail(*says: Any, **options: Any) -> PromptGuardrail:
    checks = [Check(name, said) for name, said in zip(PROMPT_CHECKS.names, says, strict=True)]
    return PromptGuardrail(checks, Policy.own(), **options)


def asked(guardrail: PromptGuardrail) -> list[int]:
    return [check.asked for check in guardrail.checks]  # type: ignore[attr-defined]


def sent(judgement: Judgement, required: RequiredChecks) -> Judgement:
    """As the pipeline reads it."""
    return Judgement.read(judgement.to_json(), required)


def test_the_first_check_that_says_no_ends_it() -> None:
    guardrail = prompt_guardrail(False, True)
    judgement = sent(guardrail.judge("a robot"), PROMPT_CHECKS)
    assert [check.safe for check in judgement.checks] == [False]
    assert judgement.facts == {"policy_sha256": Policy.own().sha256}
    assert asked(guardrail) == [1, 0]


@pytest.mark.parametrize("says", [True, False, ValueError("boom"), None])
def test_a_prompt_that_comes_again_is_judged_as_if_it_were_new(says: Any) -> None:
    """Or the time of its answer would tell that somebody had it before."""
    guardrail = prompt_guardrail(True, says)
    first = guardrail.judge("a robot")
    assert guardrail.judge("a robot") == first
    assert asked(guardrail) == [2, 2]


@pytest.mark.parametrize("says", [ValueError("boom"), None])
def test_a_check_that_fails_blocks_until_it_works_again(says: Any) -> None:
    guardrail = prompt_guardrail(True, says)
    assert sent(guardrail.judge("a robot"), PROMPT_CHECKS).last == Verdict.failed("aegis")
    guardrail.checks[1].says = True  # type: ignore[attr-defined]
    assert guardrail.judge("a robot").last.safe


def test_a_safe_video_comes_out_blurred() -> None:
    blurred = Blurred(FRAMES + 1, faces=5, frames_with_faces=2)
    frames, judgement = VideoGuardrail(Check("content_filter"), Blur(blurred)).apply(FRAMES)  # type: ignore[arg-type]
    assert torch.equal(frames, blurred.frames)
    assert sent(judgement, VIDEO_CHECKS).facts == {"faces_blurred": 5, "frames_blurred": 2}
    assert judgement.last == Verdict.passed("face_blur")


GOOD = Blurred(FRAMES, faces=0, frames_with_faces=0)
BAD = {
    "blocked": (Check("content_filter", False), Blur(GOOD)),
    "filter fails": (Check("content_filter", ValueError("boom")), Blur(GOOD)),
    "filter says nothing": (Check("content_filter", None), Blur(GOOD)),
    "blur fails": (Check("content_filter"), Blur(FileNotFoundError("weights"))),
    "blur gives nothing": (Check("content_filter"), Blur(None)),
    "blur loses a frame": (Check("content_filter"), Blur(Blurred(FRAMES[1:], faces=0, frames_with_faces=0))),
    "blur gives other numbers": (Check("content_filter"), Blur(Blurred(FRAMES.float(), faces=0, frames_with_faces=0))),
}


@pytest.mark.parametrize(("content_filter", "blur"), BAD.values(), ids=BAD)
def test_a_video_that_was_not_judged_safe_by_both_comes_out_black(content_filter: Any, blur: Any) -> None:
    frames, judgement = VideoGuardrail(content_filter, blur).apply(FRAMES)
    assert frames.shape == FRAMES.shape
    assert not frames.any()
    judgement = sent(judgement, VIDEO_CHECKS)
    assert not judgement.last.safe
    assert judgement.facts == {"faces_blurred": 0, "frames_blurred": 0}
