"""What a stage reports of work that it did not do: Triton's code, and a message."""

from __future__ import annotations


class StageError(Exception):
    """`code` is Triton's name for the kind of error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Cancelled(StageError):
    """Nobody waits for this work any more."""

    def __init__(self) -> None:
        super().__init__("CANCELLED", "the request was cancelled")
