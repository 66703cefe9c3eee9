"""Errors of a stage, each with the status code that Triton answers with."""

from __future__ import annotations

import re

# Triton drops the code of an error where one model calls another. So a stage puts it in front of its message.
CODE_PREFIX = re.compile(r"\[(INVALID_ARG|UNAVAILABLE|CANCELLED|INTERNAL)\] ")

# What Triton itself says of a stage.
UNAVAILABLE_MESSAGES = (
    "Exceeds maximum queue size",
    "Request timeout expired",
    "is not ready",
    "unknown model",
)
STAGE_DIED = "is not healthy"


class StageError(Exception):
    """`code` is the name of a code of `pb.TritonError`, such as "UNAVAILABLE"."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @classmethod
    def of(cls, stage: str, message: str) -> StageError:
        """The error for a message that a stage answered with, or Triton instead of it."""
        if prefix := CODE_PREFIX.search(message):
            code, detail = prefix[1], message[prefix.end() :]
        elif STAGE_DIED in message:
            code, detail = "INTERNAL", "its process died"
        else:
            is_unavailable = any(part in message for part in UNAVAILABLE_MESSAGES)
            code, detail = "UNAVAILABLE" if is_unavailable else "INTERNAL", message.strip().splitlines()[0]
        # The message about an invalid value names the field already.
        return cls(code, detail if code == "INVALID_ARG" else f"{stage}: {detail}")


class Cancelled(StageError):
    """The client cancelled the request, or disconnected."""

    def __init__(self) -> None:
        super().__init__("CANCELLED", "the request was cancelled")
