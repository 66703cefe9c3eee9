"""The verdict of one guardrail check, and `run_check`, which runs every check and fails closed.

No torch here: the pipeline imports this module.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

GUARDRAIL_ERROR = "guardrail_error"  # the category of a verdict that blocks because the check failed
CHECK_SECONDS = 60.0
LOGGED_CHARACTERS = 200  # of an error message, which may quote the prompt


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one check.

    guardrail: name of the check
    categories: codes of what blocked: a word list, policy categories, or a class; empty if safe
    reason: for the user: which rule blocked, never how to get around it; empty if safe
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
        """For a check that failed. Only the log says why."""
        return cls.blocked(guardrail, GUARDRAIL_ERROR, reason="the check failed")

    @property
    def is_error(self) -> bool:
        return GUARDRAIL_ERROR in self.categories


def run_check(guardrail: str, judge: Callable[[], Verdict], *, seconds: float = CHECK_SECONDS) -> Verdict:
    """The verdict that `judge` returns, or `Verdict.failed` if it raises or returns anything else.

    After `seconds` this process exits: there is no other way to stop a thread that hangs in a kernel. The timer is a C
    thread, so it also works if the check never releases the GIL. It dumps the stacks of all threads to standard error.
    The pipeline then blocks the request, because the stage died.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
    try:
        verdict = judge()
        if not isinstance(verdict, Verdict) or not isinstance(verdict.safe, bool):
            raise TypeError(f"a verdict was expected, not {type(verdict).__name__}")
        return verdict
    except Exception as error:
        log.error("guardrail %s failed, its input is blocked: %s", guardrail, _describe(error))
        return Verdict.failed(guardrail)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _describe(error: Exception) -> str:
    """Type, the beginning of the message, and the traceback."""
    message = " ".join(str(error).split())
    if len(message) > LOGGED_CHARACTERS:
        message = f"{message[:LOGGED_CHARACTERS]}..."
    return f"{type(error).__name__}: {message}\n{''.join(traceback.format_tb(error.__traceback__))}"
