"""The guardrail of the stage text_guardrail: the checks of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from cosmos_triton.guardrail.aegis import Aegis
from cosmos_triton.guardrail.blocklist import Blocklist
from cosmos_triton.guardrail.judgement import Judgement
from cosmos_triton.guardrail.policy import Policy
from cosmos_triton.guardrail.verdict import CHECK_SECONDS, Verdict, run_check
from cosmos_triton.runtime.releases import Release
from cosmos_triton.runtime.residency import Placement


class PromptCheck(Protocol):
    name: str

    def judge(self, prompt: str) -> Verdict: ...


class PromptGuardrail:
    """Runs the checks of a prompt in order, up to the first that blocks.

    Nothing is remembered of a prompt: with a cache, the time of an answer would tell anyone who asks whether somebody
    had the same prompt before.

    Args:
        checks: the cheapest first.
        check_seconds: time limit of each check.
    """

    def __init__(self, checks: Sequence[PromptCheck], policy: Policy, *, check_seconds: float = CHECK_SECONDS) -> None:
        self.checks = checks
        self.policy = policy
        self.check_seconds = check_seconds

    @classmethod
    def load(cls, checkpoint_dir: Path, release: Release, placement: Placement) -> PromptGuardrail:
        """The blocklist and Aegis, which runs in bf16 on a GPU and in fp32 on a CPU.

        Raises:
            CheckpointError, OSError, ValueError: a file is missing or broken.
        """
        policy = Policy.read(checkpoint_dir / release.policy)
        blocklist = Blocklist.from_folder(
            checkpoint_dir / release.blocklist, checkpoint_dir / release.nltk_data, release
        )
        dtype = torch.float32 if placement.device == "cpu" else torch.bfloat16
        aegis = Aegis.load(checkpoint_dir / release.text_safety, policy, device=placement.load_device, dtype=dtype)
        placement.put(aegis.model, aegis.model.model.layers)
        return cls((blocklist, aegis), policy)

    def judge(self, prompt: str) -> Judgement:
        verdicts: list[Verdict] = []
        for check in self.checks:
            verdicts.append(run_check(check.name, partial(check.judge, prompt), seconds=self.check_seconds))
            if not verdicts[-1].safe:
                break
        return Judgement(tuple(verdicts), {"policy_sha256": self.policy.sha256})
