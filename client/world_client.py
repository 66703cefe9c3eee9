"""WorldClient: generates a video from a clip or an image."""

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
from cosmos_triton.runtime.releases import COSMOS_1_0

ProtocolName = Literal["grpc", "http"]


@dataclass(frozen=True, slots=True)
class Event:
    """Progress: a stage has completed `done` of `total` steps."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished video as the bytes of an mp4 file, and the server's report."""

    video: bytes
    report: dict[str, Any]

    @property
    def outcome(self) -> str:
        return self.report["outcome"]


class Transport(Protocol):
    """A protocol's way to the server; see GrpcTransport and HttpTransport."""

    def infer(self, tensors: Sequence[Tensor], *, deadline: float | None) -> Generator[dict[str, bytes]]: ...
    def model_parameters(self) -> dict[str, str]: ...
    def close(self) -> None: ...


class WorldClient:
    """A connection to a running server. Thread-safe.

        with WorldClient("localhost:8001") as client:
            generation = client.generate("clip.mp4", seed=7)
        Path("world.mp4").write_bytes(generation.video)

    Over gRPC there is progress, and cancellation stops the work on the server; over HTTP neither.

    Args:
        url: `host:port`; by default localhost with port 8001 (grpc) or 8000 (http).
        protocol: "grpc" or "http".

    Raises:
        InvalidInput: the url or the protocol is invalid.
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
        """Generate one video and wait for it.

        Args:
            visual_input: the bytes or the path of a png, jpeg, webp or mp4 file.
            deadline: timeout in seconds; None for no limit.
            on_event: called with each Event in this thread; never over HTTP. If it raises, the request is cancelled.
            parameters: see Parameters.

        Raises:
            GuardrailBlocked: a guardrail blocked the prompt or the video.
            InvalidInput: the request is invalid.
            ServerBusy: the server accepts no more requests at the moment.
            ServerUnreachable: there is no connection to the server.
            DeadlineExceeded: the deadline has passed.
            Cancelled: the client was closed, or the server cancelled the request.
            ServerFailed: an error inside the server.
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
        """Generate one video: yields Events, and last the Generation.

        The request is sent by the first `next`. Closing the generator cancels it. Arguments and exceptions are those of
        `generate`.
        """
        return self._follow(request_tensors(_read(visual_input), parameters), deadline)

    def deployment(self) -> str:
        """The name of the deployment that the server runs, such as `12b`.

        Raises:
            ServerFailed: the server does not tell it.
            ServerBusy, ServerUnreachable: as for `generate`.
        """
        parameters = self._transport.model_parameters()
        if "deployment" not in parameters:
            raise ServerFailed("the server's world_generation names no deployment")
        return parameters["deployment"]

    def release(self) -> str:
        """The release of the models that the server runs, such as `predict1`.

        Raises:
            ServerBusy, ServerUnreachable: as for `generate`.
        """
        return self._transport.model_parameters().get("release", COSMOS_1_0.name)

    def close(self) -> None:
        """Disconnect. Requests in flight are cancelled: they raise Cancelled in their threads."""
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
    # Imported when used: importing grpc takes half a second.
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
    except (OSError, ValueError) as error:  # ValueError: NUL or a lone surrogate in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidInput(f"visual_input: value {str(visual_input)!r}; accepted: a readable file ({reason})") from None
