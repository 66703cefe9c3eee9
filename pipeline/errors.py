"""Errors of a stage, each with the status code that Triton answers with."""

from __future__ import annotations

import re

OK = "OK"
FAILURES = ("INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL")
CODES = (OK, *FAILURES)

# Triton drops the code of an error where one model calls another. So a stage puts it in front of its message.
CODE_PREFIX = re.compile(rf"\[({'|'.join(FAILURES)})\] ")

# What Triton itself says of a stage.
UNAVAILABLE_MESSAGES = (
    "Exceeds maximum queue size",
    "Request timeout expired",
    "is not ready",
    "unknown model",
)
STAGE_DIED = "is not healthy"


class StageError(Exception):
    """An error of a stage.

    Args:
        code: name of a code of `pb.TritonError`, such as "UNAVAILABLE".
        is_servers: whether the server said so in the stage's place.
    """

    def __init__(self, code: str, message: str, *, is_servers: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.is_servers = is_servers

    @classmethod
    def of(cls, stage: str, message: str) -> StageError:
        """The error for a message that a stage answered with, or Triton instead of it."""
        prefix = CODE_PREFIX.search(message)
        if prefix:
            code, detail = prefix[1], message[prefix.end() :]
        elif STAGE_DIED in message:
            code, detail = "INTERNAL", "its process died"
        else:
            is_unavailable = any(part in message for part in UNAVAILABLE_MESSAGES)
            code = "UNAVAILABLE" if is_unavailable else "INTERNAL"
            detail = (message.strip().splitlines() or ["no message"])[0]
        # The message about an invalid value names the field already.
        text = detail if code == "INVALID_ARG" else f"{stage}: {detail}"
        return cls(code, text, is_servers=prefix is None)


class Cancelled(StageError):
    """The client cancelled the request, or disconnected."""

    def __init__(self) -> None:
        super().__init__("CANCELLED", "the request was cancelled")
