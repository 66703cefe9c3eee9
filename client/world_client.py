"""The client library: a clip or an image in, a world out."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, Unpack

from cosmos_triton.client.errors import GuardrailBlocked, InvalidInput, ServerFailed
from cosmos_triton.client.tensors import Parameters, Tensor, request_tensors

ProtocolName = Literal["grpc", "http"]


@dataclass(frozen=True, slots=True)
class Event:
    """A stage has done `done` of `total` steps."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished video, as the bytes of an mp4 file, and the server's report on it."""

    video: bytes
    report: dict[str, Any]

    @property
    def outcome(self) -> str:
        return self.report["outcome"]


class Transport(Protocol):
    def infer(self, tensors: Sequence[Tensor], *, deadline: float | None) -> Generator[dict[str, bytes]]: ...
    def model_parameters(self) -> dict[str, str]: ...
    def close(self) -> None: ...


class WorldClient:
    """A connection to a running server. One client serves any number of threads.

        with WorldClient("localhost:8001") as client:
            generation = client.generate("clip.mp4", seed=7)
        Path("world.mp4").write_bytes(generation.video)

    Over gRPC a generation reports its progress, and the server stops it when it is cancelled; over HTTP neither.

    Args:
        url: `host:port`; by default localhost, port 8001 (grpc) or 8000 (http).
        protocol: "grpc" or "http".

    Raises:
        InvalidInput: a url or a protocol that is not one.
    """

    def __init__(self, url: str | None = None, protocol: ProtocolName = "grpc") -> None:
        self._transport = _connect(url, protocol)

    def generate(
        self,
        visual_input: bytes | str | PathLike[str],
        *,
        deadline: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        **parameters: Unpack[Parameters],
    ) -> Generation:
        """Generate one video, and wait for it.

        Args:
            visual_input: a png, jpeg, webp or mp4 file: its bytes, or its path.
            deadline: seconds after which to give up; by default never.
            on_event: called with each Event, in this thread; over HTTP there are none. An exception raised in it
                cancels the request.
            parameters: see Parameters.

        Raises:
            GuardrailBlocked: a guardrail withheld the video.
            InvalidInput, ServerBusy, ServerUnreachable, DeadlineExceeded, Cancelled, ServerFailed: as they say.
        """
        with closing(self.stream(visual_input, deadline=deadline, **parameters)) as updates:
            for update in updates:
                if isinstance(update, Generation):
                    return update
                if on_event:
                    on_event(update)
        raise AssertionError("a stream ends with a Generation or an exception")

    def stream(
        self,
        visual_input: bytes | str | PathLike[str],
        *,
        deadline: float | None = None,
        **parameters: Unpack[Parameters],
    ) -> Generator[Event | Generation]:
        """Generate one video: its Events as they come, then the Generation.

        The request is sent with the first step of the iterator; closing the iterator cancels it. Arguments and
        exceptions are those of `generate`.
        """
        return self._follow(request_tensors(_read(visual_input), parameters), deadline)

    def deployment(self) -> str:
        """The name of the deployment that the server runs, such as `12b`.

        Raises:
            ServerFailed: the server does not say; and ServerBusy, ServerUnreachable.
        """
        parameters = self._transport.model_parameters()
        if "deployment" not in parameters:
            raise ServerFailed("the server's world_generation names no deployment")
        return parameters["deployment"]

    def close(self) -> None:
        """Cancel what is in flight in any thread (it raises Cancelled there), and disconnect."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _follow(self, tensors: list[Tensor], deadline: float | None) -> Generator[Event | Generation]:
        outcome: dict[str, bytes] = {}
        with closing(self._transport.infer(tensors, deadline=deadline)) as responses:
            for outputs in responses:
                if outputs.get("event"):
                    event = json.loads(outputs["event"])
                    yield Event(event["stage"], event["done"], event["total"])
                if outputs.get("report"):
                    outcome = outputs
        if not outcome:
            raise ServerFailed("the answer ended without a report")
        report = json.loads(outcome["report"])
        if report["outcome"] != "generated":
            raise GuardrailBlocked(report)
        yield Generation(outcome["video"], report)


def _connect(url: str | None, protocol: str) -> Transport:
    if url is not None and ("://" in url or not url.strip()):
        raise InvalidInput(f"url: value {url!r}; accepted: host:port, without a scheme")
    # A protocol's packages are loaded when it is used: gRPC alone takes half a second.
    if protocol == "grpc":
        from cosmos_triton.client import grpc_transport

        return grpc_transport.GrpcTransport(url or grpc_transport.DEFAULT_URL)
    if protocol == "http":
        from cosmos_triton.client import http_transport

        return http_transport.HttpTransport(url or http_transport.DEFAULT_URL)
    raise InvalidInput(f"protocol: value {protocol!r}; accepted: grpc, http")


def _read(visual_input: bytes | str | PathLike[str]) -> bytes:
    if isinstance(visual_input, bytes):
        return visual_input
    try:
        return Path(visual_input).read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"visual_input: value {str(visual_input)!r}; accepted: a readable file ({error.strerror})"
        ) from None
