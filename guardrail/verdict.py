"""What a guardrail says, and the rule that one which cannot judge has not passed anything."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is for the user: it says which rule blocked, never what would get around it. Empty when safe."""

    safe: bool
    guardrail: str
    reason: str = ""


class Guardrail(Protocol):
    name: str


G = TypeVar("G", bound=Guardrail)
S = TypeVar("S")


def fail_closed(judge: Callable[[G, S], Verdict]) -> Callable[[G, S], Verdict]:
    """A `judge` method that answers "unsafe" where it would have raised."""

    @functools.wraps(judge)
    def guarded(guardrail: G, subject: S) -> Verdict:
        try:
            return judge(guardrail, subject)
        except Exception as error:
            log.exception("guardrail %s failed; its subject is blocked", guardrail.name)
            return Verdict(False, guardrail.name, f"the check itself failed ({type(error).__name__})")

    return guarded
