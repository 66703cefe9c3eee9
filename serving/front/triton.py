"""The private tritonserver behind the front: its gRPC, and its own pages over HTTP."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from cosmos_triton.runtime.media.limits import MIB
from cosmos_triton.serving.front.errors import RESTARTING, Code, Refusal
from cosmos_triton.serving.front.limits import CONNECT_SECONDS, PRIVATE_SECONDS
from cosmos_triton.serving.private_sockets import PrivateSockets

SERVICE = "/inference.GRPCInferenceService/"
INFER, STREAM = SERVICE + "ModelInfer", SERVICE + "ModelStreamInfer"
LOST = (Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN)  # what a call gets whose connection ends
MAX_PAGE_BYTES = 16 * MIB
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # A restarted server is found at once: the socket is a file on this machine.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


@dataclass(frozen=True, slots=True)
class Page:
    status: int
    content_type: str
    body: bytes


class Triton:
    """Messages are serialised protobufs. A client's metadata are never passed on: with the header `triton_grpc_error`
    it could crash release 24.10."""

    def __init__(self, sockets: PrivateSockets) -> None:
        self._sockets = sockets
        self._channel = grpc.aio.insecure_channel(f"unix:{sockets.grpc}", options=OPTIONS)
        self._unary: dict[str, Any] = {}

    async def close(self) -> None:
        await self._channel.close()

    async def call(self, method: str, message: bytes, *, seconds: float | None = None) -> bytes:
        """The answer of a unary method, by its path. Cancelling the task cancels the call.

        Raises:
            Refusal: with Triton's code and message.
        """
        if method not in self._unary:
            self._unary[method] = self._channel.unary_unary(method)
        await self._connect()
        try:
            return await self._unary[method](message, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise self.refusal(error.code(), error.details()) from None

    async def stream(self) -> Any:
        """A new call of ModelStreamInfer; cancel it in the end."""
        await self._connect()
        return self._channel.stream_stream(STREAM)()

    def refusal(self, code: grpc.StatusCode, details: str | None) -> Refusal:
        """The refusal for the status of a call. A lost connection is told without the socket's path."""
        is_lost = code in LOST and self._channel.get_state() != grpc.ChannelConnectivity.READY
        if is_lost or code == Code.DEADLINE_EXCEEDED:  # it hangs; clients' own deadlines end their calls here
            return Refusal(Code.UNAVAILABLE, RESTARTING)
        return Refusal(code, details or "")

    async def _connect(self) -> None:
        """Between two attempts to connect, calls fail, though Triton may be ready by now."""
        if self._channel.get_state(try_to_connect=True) != grpc.ChannelConnectivity.READY:
            with suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._channel.channel_ready()

    async def is_live(self) -> bool:
        answer = await self.call(SERVICE + "ServerLive", b"", seconds=PRIVATE_SECONDS)
        return service_pb2.ServerLiveResponse.FromString(answer).live

    async def is_ready(self) -> bool:
        """Over the channel that requests go through, so that they are answered once this says so."""
        answer = await self.call(SERVICE + "ServerReady", b"", seconds=PRIVATE_SECONDS)
        return service_pb2.ServerReadyResponse.FromString(answer).ready

    async def is_model_ready(self, model: str, version: str) -> bool:
        request = service_pb2.ModelReadyRequest(name=model, version=version).SerializeToString()
        answer = await self.call(SERVICE + "ModelReady", request, seconds=PRIVATE_SECONDS)
        return service_pb2.ModelReadyResponse.FromString(answer).ready

    async def metadata(self, model: str, version: str) -> Any:
        """A ModelMetadataResponse."""
        request = service_pb2.ModelMetadataRequest(name=model, version=version).SerializeToString()
        answer = await self.call(SERVICE + "ModelMetadata", request, seconds=PRIVATE_SECONDS)
        return service_pb2.ModelMetadataResponse.FromString(answer)

    async def is_decoupled(self, model: str, version: str) -> bool:
        request = service_pb2.ModelConfigRequest(name=model, version=version).SerializeToString()
        answer = await self.call(SERVICE + "ModelConfig", request, seconds=PRIVATE_SECONDS)
        return service_pb2.ModelConfigResponse.FromString(answer).config.model_transaction_policy.decoupled

    async def page(self, path: str) -> Page:
        """The answer of Triton's own HTTP interface to GET `path`, of which the caller vouches that it is one."""
        return await _get(self._sockets.http, path)

    async def metrics(self) -> Page:
        return await _get(self._sockets.metrics, "/metrics")


async def _get(socket: Path, path: str) -> Page:
    """Raises Refusal: UNAVAILABLE, without an answer in time."""
    try:
        async with asyncio.timeout(PRIVATE_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode("ascii"))
                answer = await _read_all(reader)
            finally:
                writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        return Page(int(status.split()[1]), headers.get("content-type", "text/plain"), body)
    except (OSError, TimeoutError, ValueError, IndexError):
        raise Refusal(Code.UNAVAILABLE, RESTARTING) from None


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    pieces, size = [], 0
    while piece := await reader.read(MIB):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_PAGE_BYTES:
            raise ValueError("the page is too large")
    return b"".join(pieces)
