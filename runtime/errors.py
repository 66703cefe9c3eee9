"""Errors whose message says all there is to say: the command line prints it as one line, without a traceback."""

from __future__ import annotations


class CosmosError(Exception):
    """Something the user can put right. The message names the thing, what it is, and what is accepted."""


class CheckpointError(CosmosError):
    """A checkpoint file that is missing, broken, not what it should be, or out of reach."""


class InvalidValue(CosmosError):
    """A request that cannot be served as it is: which input, what it is, and what is accepted instead."""

    def __init__(self, field: str, value: object, accepted: str) -> None:
        super().__init__(f"{field}: value {value}; accepted: {accepted}")
        self.field = field
        self.value = value
        self.accepted = accepted
