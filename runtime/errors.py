"""Errors that users can fix. Their message is complete: the command line prints it as one line, without a traceback."""

from __future__ import annotations


class CosmosError(Exception):
    """An error that the user can fix. The message names the field, its value, and what is accepted."""


class CheckpointError(CosmosError):
    """A checkpoint file is missing, damaged, of another kind, or cannot be downloaded."""


class InvalidValue(CosmosError):
    """A value that is not accepted.

    Args:
        field: the input or option.
        value: what was given.
        accepted: what is accepted instead.
    """

    def __init__(self, field: str, value: object, accepted: str) -> None:
        super().__init__(f"{field}: value {value}; accepted: {accepted}")
        self.field = field
        self.value = value
        self.accepted = accepted
