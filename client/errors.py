"""Exceptions of the client, and the mapping from the server's status codes to them."""

from __future__ import annotations

import re
from typing import Any

from cosmos_triton.runtime.errors import CosmosError

# The form of the server's error messages about invalid input.
_INVALID = re.compile(r"(?P<field>\w+): (?:value )?(?P<value>.*); accepted: (?P<accepted>.*)", re.DOTALL)

_CODE_PREFIX = re.compile(r"\[([A-Z_]+)\] ")


class WorldError(CosmosError):
    """A request failed. The base class of all exceptions of the client."""


class InvalidInput(WorldError):
    """The request is invalid.

    `field`, `value` and `accepted` are parsed from the message; None if it has another form.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        parts = _INVALID.fullmatch(message)
        self.field: str | None = parts and parts["field"]
        self.value: str | None = parts and parts["value"]
        self.accepted: str | None = parts and parts["accepted"]


class GuardrailBlocked(WorldError):
    """A guardrail blocked the prompt or the video. `report` is the server's, with `outcome` and `reason`."""

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__(f"{report['outcome']}: {report.get('reason') or 'no reason given'}")
        self.report = report


class ServerBusy(WorldError):
    """The server accepts no more requests at the moment. Retrying is safe: a generation has no side effects."""


class ServerUnreachable(WorldError):
    """No connection to the server, or the connection was lost."""


class DeadlineExceeded(WorldError):
    """The request took longer than its deadline."""


class Cancelled(WorldError):
    """The request was cancelled, by closing the client or on the server."""


class ServerFailed(WorldError):
    """An error inside the server; its log has the details."""


def server_error(message: str, *, code: str = "") -> WorldError:
    """The exception for an error response of the server.

    Args:
        message: its text. Triton drops status codes in streams, so the pipeline puts them in front: `[UNAVAILABLE] `.
        code: the code for a message without that prefix; Triton's name or gRPC's.
    """
    if prefix := _CODE_PREFIX.match(message):
        code, message = prefix[1], message[prefix.end() :]
    match code:
        case "INVALID_ARG" | "INVALID_ARGUMENT":
            return InvalidInput(message)
        case "UNAVAILABLE" | "NOT_FOUND":  # NOT_FOUND: the model is being reloaded, or the server is stopping
            return ServerBusy(message)
        case "DEADLINE_EXCEEDED":
            return DeadlineExceeded(message)
        case "CANCELLED":
            return Cancelled(message)
    return ServerFailed(message)
