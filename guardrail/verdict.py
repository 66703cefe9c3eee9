"""What a guardrail says, and the one place where a check is run: whatever cannot judge has not passed anything.

No torch here: the pipeline reads verdicts without it.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

GUARDRAIL_ERROR = "guardrail_error"  # the category of what was blocked because a check failed
CHECK_SECONDS = 60.0
LOGGED_CHARACTERS = 200  # of an error's message: it may quote the prompt


@dataclass(frozen=True, slots=True)
class Verdict:
    """`categories` are codes: which words, policy categories or classes blocked. `reason` is for the user: it says
    which rule blocked, never what would get around it. Both are empty when safe.
    """

    guardrail: str
    safe: bool
    categories: tuple[str, ...] = ()
    reason: str = ""

    @classmethod
    def passed(cls, guardrail: str) -> Verdict:
        return cls(guardrail, safe=True)

    @classmethod
    def blocked(cls, guardrail: str, *categories: str, reason: str) -> Verdict:
        return cls(guardrail, safe=False, categories=categories, reason=reason)

    @classmethod
    def failed(cls, guardrail: str) -> Verdict:
        """Of a check that could not judge. Why is for the log alone."""
        return cls.blocked(guardrail, GUARDRAIL_ERROR, reason="the check failed")

    @property
    def is_error(self) -> bool:
        return GUARDRAIL_ERROR in self.categories


def judged(guardrail: str, judge: Callable[[], Verdict], *, seconds: float = CHECK_SECONDS) -> Verdict:
    """The verdict that `judge` returns; `Verdict.failed` if it raises, or returns anything else.

    A check that takes longer than `seconds` ends this process: a thread that hangs in a kernel cannot be stopped in any
    other way. The timer needs no interpreter, so it also ends a check that never lets go of it; it writes where every
    thread stands to standard error. The request is blocked by the pipeline, which sees the process die.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
    try:
        verdict = judge()
        if not isinstance(verdict, Verdict) or not isinstance(verdict.safe, bool):
            raise TypeError(f"a verdict was expected, not {type(verdict).__name__}")
        return verdict
    except Exception as error:
        log.error("guardrail %s failed, what it was given is blocked: %s", guardrail, _described(error))
        return Verdict.failed(guardrail)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _described(error: Exception) -> str:
    """Type, the beginning of the message, and where it came from."""
    message = " ".join(str(error).split())
    if len(message) > LOGGED_CHARACTERS:
        message = f"{message[:LOGGED_CHARACTERS]}..."
    return f"{type(error).__name__}: {message}\n{''.join(traceback.format_tb(error.__traceback__))}"
