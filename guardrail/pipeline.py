"""The guardrails in their order: what must be passed before a video is made, and before it is handed out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cosmos_triton.guardrail.content_filter import ContentFilter
from cosmos_triton.guardrail.face_blur import FaceBlur
from cosmos_triton.guardrail.verdict import Verdict


class PromptCheck(Protocol):
    def judge(self, prompt: str) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class PromptGuardrail:
    """The checks of a prompt, cheapest first; the first that says no ends it."""

    checks: Sequence[PromptCheck]

    def judge(self, prompt: str) -> list[Verdict]:
        """Verdicts up to and with the first that is not safe."""
        verdicts: list[Verdict] = []
        for check in self.checks:
            verdicts.append(check.judge(prompt))
            if not verdicts[-1].safe:
                break
        return verdicts


@dataclass(frozen=True, slots=True)
class VideoGuardrail:
    """The content filter, then face blur: what the filter blocks is not looked at further."""

    content_filter: ContentFilter
    face_blur: FaceBlur

    def apply(self, frames: Tensor) -> tuple[Tensor, list[Verdict], int]:
        """RGB uint8 frames [T, H, W, 3] -> the frames to hand out, verdicts, and how many faces were blurred.

        What is blocked is handed out black.
        """
        verdict = self.content_filter.judge(frames)
        if not verdict.safe:
            return torch.zeros_like(frames), [verdict], 0
        try:
            blurred, faces = self.face_blur.blur(frames)
        except Exception as error:
            reason = f"the check itself failed ({type(error).__name__})"
            return torch.zeros_like(frames), [verdict, Verdict(False, "face_blur", reason)], 0
        return blurred, [verdict, Verdict(True, "face_blur")], faces
