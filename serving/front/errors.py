"""Refusals of the front, in the form of the server's other errors."""

from __future__ import annotations

import grpc  # type: ignore[import-untyped]

from cosmos_triton.runtime.errors import InvalidValue

Code = grpc.StatusCode

# As Triton's own HTTP interface maps them; every other code is 500.
HTTP_STATUS = {
    Code.INVALID_ARGUMENT: 400,
    Code.ALREADY_EXISTS: 400,
    Code.CANCELLED: 400,
    Code.UNKNOWN: 400,
    Code.RESOURCE_EXHAUSTED: 400,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
}
RESTARTING = "[UNAVAILABLE] the server is being restarted; retry later"


class Refusal(Exception):
    """A request ends with this code and message.

    status: of HTTP; by default the code's.
    """

    def __init__(self, code: grpc.StatusCode, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status or HTTP_STATUS.get(code, 500)


def invalid(field: str, value: object, accepted: str, *, status: int | None = None) -> Refusal:
    """The refusal of a value. `value` must be short, whatever the client sent."""
    return Refusal(Code.INVALID_ARGUMENT, f"[INVALID_ARG] {InvalidValue(field, value, accepted)}", status=status)


def overloaded(field: str, value: object, accepted: str) -> Refusal:
    return Refusal(Code.UNAVAILABLE, f"[UNAVAILABLE] {InvalidValue(field, value, accepted)}")
