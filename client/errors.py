"""What can go wrong between a client and the server, and the one place where status codes become exceptions."""

from __future__ import annotations

import re
from typing import Any

from cosmos_triton.runtime.errors import CosmosError

# The server's form for refused input, the same over both protocols.
_REFUSAL = re.compile(r"(?P<field>\w+): (?:value )?(?P<value>.*); accepted: (?P<accepted>.*)", re.DOTALL)

_TAG = re.compile(r"\[([A-Z_]+)\] ")


class WorldError(CosmosError):
    """A request that brought no video. Every exception of the client is one."""


class InvalidInput(WorldError):
    """The request cannot be served as it is.

    `field`, `value` and `accepted` say which input it is about; they are None where the message has another form.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        parts = _REFUSAL.fullmatch(message)
        self.field: str | None = parts and parts["field"]
        self.value: str | None = parts and parts["value"]
        self.accepted: str | None = parts and parts["accepted"]


class GuardrailBlocked(WorldError):
    """A guardrail withheld the video. `report` is the server's, with `outcome` and `reason`."""

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__(f"{report['outcome']}: {report.get('reason') or 'no reason given'}")
        self.report = report


class ServerBusy(WorldError):
    """The server takes no more requests at the moment. Asking again later is safe: a generation has no side effect."""


class ServerUnreachable(WorldError):
    """There is no connection to the server, or it was lost."""


class DeadlineExceeded(WorldError):
    """The request took longer than its deadline."""


class Cancelled(WorldError):
    """The request was cancelled: the client was closed, or the server says so."""


class ServerFailed(WorldError):
    """Something broke inside the server; its log says more."""


def server_error(message: str, *, code: str = "") -> WorldError:
    """The exception for an error that the server answered with.

    Args:
        message: its text. A tag at its head, `[UNAVAILABLE] `, is the code: on the way through the server's streams and
            pipelines the code itself is lost.
        code: what the transport has for a message without a tag; Triton's name or gRPC's.
    """
    if tag := _TAG.match(message):
        code, message = tag[1], message[tag.end() :]
    match code:
        case "INVALID_ARG" | "INVALID_ARGUMENT":
            return InvalidInput(message)
        case "UNAVAILABLE" | "NOT_FOUND":  # NOT_FOUND: the model is being loaded again, or the server is stopping
            return ServerBusy(message)
        case "DEADLINE_EXCEEDED":
            return DeadlineExceeded(message)
        case "CANCELLED":
            return Cancelled(message)
    return ServerFailed(message)
