"""Requests and answers of HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from cosmos_triton.serving.front.errors import Refusal
from cosmos_triton.serving.front.json_text import error_body

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Head:
    """The request line and the headers, by name in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(slots=True)
class Request:
    """groups: parts of the path, by the names in its route."""

    head: Head
    groups: Mapping[str, str]
    body: bytes

    def take_body(self) -> bytes:
        """The body, which is not kept here while the request is worked on."""
        body, self.body = self.body, b""
        return body


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: list[bytes] = field(default_factory=list)
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(map(len, self.body))


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer whose pieces are sent as they come."""

    status: int
    pieces: AsyncGenerator[bytes]
    content_type: str


Handler = Callable[[Request], Awaitable[Answer | Stream]]
# The handler of a head and the parts of its path; raises Refusal where there is none.
Router = Callable[[Head], tuple[Handler, Mapping[str, str]]]


def refused(refusal: Refusal) -> Answer:
    return Answer(refusal.status, [error_body(refusal.message)])
