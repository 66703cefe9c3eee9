"""The guardrails that a prompt must pass before anything is made of it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from cosmos_triton.guardrail.aegis import Aegis
from cosmos_triton.guardrail.blocklist import Blocklist
from cosmos_triton.guardrail.judgement import Judgement
from cosmos_triton.guardrail.policy import Policy
from cosmos_triton.guardrail.verdict import CHECK_SECONDS, Verdict, judged
from cosmos_triton.runtime import checkpoints as paths
from cosmos_triton.runtime.residency import Placement

REMEMBERED = 4096  # prompts


class PromptCheck(Protocol):
    name: str

    def judge(self, prompt: str) -> Verdict: ...


class PromptGuardrail:
    """The checks of a prompt, cheapest first; the first that says no ends it.

    A prompt that comes again gets the same judgement without being checked, unless a check had failed: then it is
    tried anew. What is remembered is the prompt's hash. It needs no more of a key: word lists and policy are read once.
    """

    def __init__(
        self,
        checks: Sequence[PromptCheck],
        policy: Policy,
        *,
        remembered: int = REMEMBERED,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self.checks = checks
        self.policy = policy
        self.check_seconds = check_seconds
        self._remembered = remembered
        self._memory: OrderedDict[bytes, Judgement] = OrderedDict()  # the latest asked for last

    @classmethod
    def load(cls, checkpoint_dir: Path, placement: Placement) -> PromptGuardrail:
        """The blocklist, then Aegis: in bf16 on a GPU, in fp32 on a CPU. A missing file raises."""
        policy = Policy.read(checkpoint_dir / paths.POLICY)
        blocklist = Blocklist.from_folder(checkpoint_dir / paths.BLOCKLIST, checkpoint_dir / paths.NLTK_DATA)
        dtype = torch.float32 if placement.device == "cpu" else torch.bfloat16
        aegis = Aegis.load(checkpoint_dir / paths.TEXT_SAFETY, policy, device=placement.load_device, dtype=dtype)
        placement.put(aegis.model, aegis.model.model.layers)
        return cls((blocklist, aegis), policy)

    def judge(self, prompt: str) -> Judgement:
        key = hashlib.sha256(prompt.encode()).digest()
        judgement = self._memory.get(key) or self._checked(prompt)
        if not judgement.last.is_error:
            self._memory[key] = judgement
            self._memory.move_to_end(key)
            if len(self._memory) > self._remembered:
                self._memory.popitem(last=False)
        return judgement

    def _checked(self, prompt: str) -> Judgement:
        verdicts: list[Verdict] = []
        for check in self.checks:
            verdicts.append(judged(check.name, partial(check.judge, prompt), seconds=self.check_seconds))
            if not verdicts[-1].safe:
                break
        return Judgement(tuple(verdicts), {"policy_sha256": self.policy.sha256})
