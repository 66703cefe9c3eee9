"""What the guardrails of one stage say of a prompt or a video, and the form in which the pipeline is told.

The reader trusts nothing: an answer counts as a pass only if every guardrail that must have run says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from cosmos_triton.guardrail.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Panel:
    """The guardrails that a stage must ask, in their order, and what else it tells, for the report."""

    guardrails: tuple[str, ...]
    facts: dict[str, type]


PROMPT_PANEL = Panel(("blocklist", "aegis"), {"policy_sha256": str})
VIDEO_PANEL = Panel(("content_filter", "face_blur"), {"faces_blurred": int, "frames_blurred": int})


@dataclass(frozen=True, slots=True)
class Judgement:
    """Verdicts in the order of the panel, up to and with the first that is not safe."""

    checks: tuple[Verdict, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> Verdict:
        return self.checks[-1]

    def to_json(self) -> str:
        return json.dumps({"safe": self.last.safe, "checks": [asdict(check) for check in self.checks]} | self.facts)

    @classmethod
    def read(cls, text: bytes | str, panel: Panel) -> Judgement:
        """What `to_json` wrote, of this panel.

        Raises:
            ValueError: it is anything else.
        """
        match json.loads(text):
            case {"safe": bool(safe), "checks": [_, *_] as checks, **others}:
                facts: dict[str, Any] = {str(name): fact for name, fact in others.items()}
                judgement = cls(tuple(map(_read_check, checks)), facts)
            case _:
                raise ValueError("no verdict")
        if {name: type(fact) for name, fact in facts.items()} != panel.facts:
            raise ValueError(f"the facts are {list(facts)}, expected {list(panel.facts)}")
        names = tuple(check.guardrail for check in judgement.checks)
        if names != panel.guardrails[: len(names)]:
            raise ValueError(f"the checks are {names}, expected {panel.guardrails}")
        if not all(check.safe for check in judgement.checks[:-1]) or safe is not judgement.last.safe:
            raise ValueError("the checks contradict each other")
        if safe and names != panel.guardrails:
            raise ValueError(f"safe after {names} alone, expected {panel.guardrails}")
        return judgement


def _read_check(check: Any) -> Verdict:
    match check:
        case {"guardrail": str(guardrail), "safe": bool(safe), "categories": [*categories], "reason": str(reason)}:
            if len(check) == 4 and all(isinstance(category, str) for category in categories):
                if safe is bool(categories):
                    raise ValueError(f"{guardrail} is safe in a category, or unsafe in none")
                return Verdict(guardrail, safe, tuple(categories), reason)
    raise ValueError("a check that is none")
