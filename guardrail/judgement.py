"""The judgement of a guardrail stage: what its checks said of a prompt or a video, and its JSON form.

The pipeline reads it and trusts nothing: it is a pass only if every required check says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from cosmos_triton.guardrail.verdict import Verdict


@dataclass(frozen=True, slots=True)
class RequiredChecks:
    """The checks that a stage must run, in order, and the name and type of each fact that it adds to the report."""

    names: tuple[str, ...]
    facts: dict[str, type]


PROMPT_CHECKS = RequiredChecks(("blocklist", "aegis"), {"policy_sha256": str})
VIDEO_CHECKS = RequiredChecks(("content_filter", "face_blur"), {"faces_blurred": int, "frames_blurred": int})


@dataclass(frozen=True, slots=True)
class Judgement:
    """Verdicts of the checks in order, up to and including the first that is not safe, and facts for the report."""

    checks: tuple[Verdict, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> Verdict:
        """The deciding verdict."""
        return self.checks[-1]

    def to_json(self) -> str:
        return json.dumps({"safe": self.last.safe, "checks": [asdict(check) for check in self.checks]} | self.facts)

    @classmethod
    def read(cls, text: bytes | str, required: RequiredChecks) -> Judgement:
        """Parse the JSON of `to_json`.

        Raises:
            ValueError: it has another form, lacks a required check, or contradicts itself.
        """
        match json.loads(text):
            case {"safe": bool(safe), "checks": [_, *_] as checks, **others}:
                facts: dict[str, Any] = {str(name): fact for name, fact in others.items()}
                judgement = cls(tuple(map(_read_check, checks)), facts)
            case _:
                raise ValueError("no verdict")
        if {name: type(fact) for name, fact in facts.items()} != required.facts:
            raise ValueError(f"the facts are {list(facts)}, expected {list(required.facts)}")
        names = tuple(check.guardrail for check in judgement.checks)
        if names != required.names[: len(names)]:
            raise ValueError(f"the checks are {names}, expected {required.names}")
        if not all(check.safe for check in judgement.checks[:-1]) or safe is not judgement.last.safe:
            raise ValueError("the checks contradict each other")
        if safe and names != required.names:
            raise ValueError(f"safe after {names} alone, expected {required.names}")
        return judgement


def _read_check(check: Any) -> Verdict:
    match check:
        case {"guardrail": str(guardrail), "safe": bool(safe), "categories": [*categories], "reason": str(reason)}:
            if len(check) != 4 or not all(isinstance(category, str) for category in categories):
                raise ValueError(f"{guardrail}: not a verdict")
            if safe is bool(categories):
                raise ValueError(f"{guardrail}: safe with a category, or unsafe without one")
            return Verdict(guardrail, safe, tuple(categories), reason)
    raise ValueError("a check that is not a verdict")
