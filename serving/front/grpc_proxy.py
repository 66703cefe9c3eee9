"""The public gRPC interface: passes serialised messages to tritonserver and back, within bounds, without decoding them.

Messages that are too large, or unpack to more, are refused by gRPC itself. Of a message that nobody has asked for yet
it keeps no more than a window of some 64 KB.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]

from cosmos_triton.serving.front.budget import Budget, Share
from cosmos_triton.serving.front.errors import Code, Refusal, invalid, overloaded
from cosmos_triton.serving.front.limits import (
    BODY_BYTES,
    BODY_SECONDS,
    CALLS,
    CONNECTIONS,
    CONTROL_BYTES,
    HEAD_BYTES,
    MEMORY_BYTES,
    PRIVATE_SECONDS,
)
from cosmos_triton.serving.front.message_check import check_infer_request
from cosmos_triton.serving.front.triton import INFER, SERVICE, STREAM, Triton

# Everything else is model control, shared memory, traces and logs, which clients do not need.
STATE = ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
UNARY = {INFER, "/grpc.health.v1.Health/Check", *(SERVICE + method for method in STATE)}
OPTIONS = [
    ("grpc.max_receive_message_length", BODY_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", HEAD_BYTES),
    ("grpc.absolute_max_metadata_size", HEAD_BYTES),
    ("grpc.max_concurrent_streams", CALLS),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS),
    ("grpc.so_reuseport", 0),
    # Clients and proxies may ping as often as they like, with and without calls.
    ("grpc.http2.min_ping_interval_without_data_ms", 0),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # A client whose machine is gone without a word is noticed, so that its requests are cancelled.
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]
# In a serialised ModelStreamInferResponse: an error, which comes first, or the mark of a request's last response.
ERROR, LAST = b"\n", b"\n\x15triton_final_response\x12\x02\x08\x01"
GUARD_SECONDS = 0.25
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class GrpcProxy(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Handles every call of a server.

    Requests are read, and so held in memory, without knowing their length before their end. `guard` bounds their sum.
    """

    def __init__(self, triton: Triton, budget: Budget) -> None:
        self._triton, self._budget = triton, budget
        self._calls = 0
        self._arriving: dict[asyncio.Task[Any], None] = {}  # in the order of their beginning

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        handle: Callable[[Any, Share], Awaitable[None]]
        if details.method == STREAM:
            handle = self._stream
        elif details.method in UNARY:
            handle = self._unary(details.method)
        else:
            handle = _restricted
        return grpc.stream_stream_rpc_method_handler(self._bounded(handle))

    async def guard(self) -> None:
        """Drop arriving messages, the oldest first, while this process has more memory than it may."""
        libc = ctypes.CDLL(None)
        while True:
            await asyncio.sleep(GUARD_SECONDS)
            if _resident_bytes() > MEMORY_BYTES:
                libc.malloc_trim(0)  # what is free already
            if _resident_bytes() > MEMORY_BYTES:
                for task in list(self._arriving)[: 1 + len(self._arriving) // 4]:
                    task.cancel()

    def _bounded(self, handle: Callable[[Any, Share], Awaitable[None]]) -> Callable[[Any, Any], Awaitable[None]]:
        async def bounded(_: Any, context: Any) -> None:
            self._calls += 1
            try:
                if self._calls > CALLS:
                    raise overloaded("calls", self._calls, f"at most {CALLS}; retry later")
                with self._budget.share() as share:
                    await handle(context, share)
            except Refusal as refusal:
                await context.abort(refusal.code, refusal.message)
            finally:
                self._calls -= 1

        return bounded

    def _unary(self, method: str) -> Callable[[Any, Share], Awaitable[None]]:
        async def handle(context: Any, share: Share) -> None:
            message = await self._read(context, seconds=BODY_SECONDS)
            if message is None:
                raise invalid("request", "no message", "one message")
            share.take(len(message))
            if method != INFER and len(message) > CONTROL_BYTES:
                raise invalid("request", f"{len(message)} bytes", f"at most {CONTROL_BYTES} bytes")
            if method == INFER:
                check_infer_request(message)
            call = self._triton.call(method, message, seconds=None if method == INFER else PRIVATE_SECONDS)
            del message
            answer = await call
            share.hold(len(answer))
            await _write(context, answer)

        return handle

    async def _stream(self, context: Any, share: Share) -> None:
        call = await self._triton.stream()
        unanswered: deque[int] = deque()  # bytes of the requests that are in flight
        forward = asyncio.create_task(self._forward(context, share, unanswered, call))
        backward = asyncio.create_task(self._backward(context, share, unanswered, call))
        try:
            await asyncio.wait((forward, backward), return_when=asyncio.FIRST_COMPLETED)
            if not backward.done():
                await forward
            await backward
        finally:
            for task in (forward, backward):
                task.cancel()
            call.cancel()
            await asyncio.gather(forward, backward, return_exceptions=True)

    async def _forward(self, context: Any, share: Share, unanswered: deque[int], call: Any) -> None:
        """Pass on the requests of a stream; a refused one ends it."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # Triton has ended the stream, and says why
            while (message := await self._read(context, seconds=None)) is not None:
                share.take(len(message))
                unanswered.append(len(message))
                check_infer_request(message)
                await call.write(message)
                del message
            await call.done_writing()

    async def _backward(self, context: Any, share: Share, unanswered: deque[int], call: Any) -> None:
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                await _write(context, answer)
                if unanswered and (answer.startswith(ERROR) or LAST in answer):
                    share.give_back(unanswered.popleft())
        except grpc.aio.AioRpcError as error:
            raise self._triton.refusal(error.code(), error.details()) from None
        if (code := await call.code()) != Code.OK:
            raise self._triton.refusal(code, await call.details())

    async def _read(self, context: Any, *, seconds: float | None) -> bytes | None:
        """The next message; None behind the last.

        Raises:
            Refusal: it did not come in time, or there is no memory for it.
        """
        reading = asyncio.ensure_future(context.read())
        self._arriving[reading] = None
        try:
            async with asyncio.timeout(seconds):
                message = await reading
        except TimeoutError:
            raise invalid("request", f"none within {seconds} s", "a message") from None
        except asyncio.CancelledError:
            if reading.cancelled() and not asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise overloaded("memory", "none left for this message", "fewer at a time; retry later") from None
            raise
        finally:
            del self._arriving[reading]
        return None if message is grpc.aio.EOF else message


async def _write(context: Any, answer: bytes) -> None:
    """Raises Refusal: CANCELLED, where the client does not take it."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            await context.write(answer)
    except TimeoutError:
        raise Refusal(Code.CANCELLED, "the client does not read") from None


async def _restricted(context: Any, share: Share) -> None:
    raise Refusal(Code.PERMISSION_DENIED, "This protocol is restricted")


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def grpc_server(proxy: GrpcProxy, host: str, port: int) -> Any:
    """A server that listens once it is started. Raises OSError where the address cannot be had."""
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((proxy,))
    try:
        server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"port {port} of {host}: {error}") from None
    return server
