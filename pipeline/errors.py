"""Errors of a stage, each with the status code that Triton answers with."""

from __future__ import annotations


class StageError(Exception):
    """`code` is the name of a code of `pb.TritonError`, such as "UNAVAILABLE"."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Cancelled(StageError):
    """The client cancelled the request, or disconnected."""

    def __init__(self) -> None:
        super().__init__("CANCELLED", "the request was cancelled")
