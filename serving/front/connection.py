"""One HTTP/1.1 connection: requests one after the other, each within bounds of bytes and time.

Not uvicorn: its protocol bounds neither headers, nor chunks, nor the time for either to arrive, and stops to look
whether the client is there once bytes of a next request have come.
"""

from __future__ import annotations

import asyncio
import http
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import TypeVar

from cosmos_triton.runtime.media.limits import MIB
from cosmos_triton.serving.front.budget import Budget, Share
from cosmos_triton.serving.front.errors import Code, Refusal, overloaded
from cosmos_triton.serving.front.http_messages import Answer, Handler, Head, Request, Router, Stream, refused
from cosmos_triton.serving.front.incoming import Incoming, check_head
from cosmos_triton.serving.front.limits import (
    BODY_SECONDS,
    HEAD_SECONDS,
    IDLE_SECONDS,
    LINGER_SECONDS,
    STALL_SECONDS,
)

T = TypeVar("T")

READ_BYTES = 256 * 1024


class _Gone(Exception):
    """The client has closed the connection, or does not go on."""


class Connection:
    """is_idle: between two requests, or before the end of one's headers."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, router: Router, budget: Budget
    ) -> None:
        self._reader, self._writer = reader, writer
        self._router, self._budget = router, budget
        self._ends = False
        self.is_idle = True

    async def serve(self) -> None:
        """Answer requests until either side ends the connection."""
        try:
            while not self._ends:
                with self._budget.share() as share:
                    await self._exchange(share)
        except (_Gone, OSError, TimeoutError):
            pass
        finally:
            await self._close()

    async def _close(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(STALL_SECONDS):  # for the rest of the answer
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()

    def end(self) -> None:
        """End the connection: at once when it is idle, else behind the answer under way."""
        self._ends = True
        if self.is_idle:
            self._writer.close()

    async def turn_away(self) -> None:
        """Answer that there are too many connections."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await self._send(refused(overloaded("connections", "too many", "fewer; retry later")), None)
        await self._close()

    async def _exchange(self, share: Share) -> None:
        incoming = Incoming(share.take)
        try:
            handler, groups, head = await self._read_head(incoming)
            self.is_idle = False
            await self._read_body(incoming, head)
        except Refusal as refusal:
            self._ends = True
            await self._send(refused(refusal), incoming)
            await self._linger(incoming)
            return
        self._ends = self._ends or not incoming.keeps_alive
        request = Request(head, groups, b"".join(incoming.pieces))
        incoming.pieces.clear()
        answer = await self._unless_gone(_answered(handler, request))
        if isinstance(answer, Stream):
            self._ends = True
            await self._unless_gone(self._send_stream(answer, incoming))
        else:
            share.hold(answer.size)
            await self._send(answer, incoming)
        self.is_idle = True

    async def _read_head(self, incoming: Incoming) -> tuple[Handler, Mapping[str, str], Head]:
        incoming.feed(await self._read(IDLE_SECONDS))
        async with asyncio.timeout(HEAD_SECONDS):
            while incoming.head is None:
                incoming.feed(await self._read(HEAD_SECONDS))
        check_head(incoming.head)
        handler, groups = self._router(incoming.head)
        return handler, groups, incoming.head

    async def _read_body(self, incoming: Incoming, head: Head) -> None:
        if not incoming.is_complete and head.headers.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async with asyncio.timeout(BODY_SECONDS):
            while not incoming.is_complete:
                incoming.feed(await self._read(STALL_SECONDS))

    async def _read(self, seconds: float) -> bytes:
        async with asyncio.timeout(seconds):
            data = await self._reader.read(READ_BYTES)
        if not data:
            raise _Gone
        return data

    async def _unless_gone(self, work: Awaitable[T]) -> T:
        """The result of `work`, which is cancelled when the client closes the connection."""
        task, gone = asyncio.ensure_future(work), asyncio.create_task(self._until_gone())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _Gone
            return task.result()
        finally:
            for each in (task, gone):
                each.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _until_gone(self) -> None:
        """Bytes of a next request are not kept: who sends them before the answer has to send them again."""
        with suppress(OSError):
            while await self._reader.read(READ_BYTES):
                self._ends = True

    async def _send(self, answer: Answer, incoming: Incoming | None) -> None:
        self._write_head(answer.status, answer.content_type, {**answer.headers, "Content-Length": str(answer.size)})
        if incoming and incoming.head and incoming.head.method == "HEAD":
            return
        for part in answer.body:
            for begin in range(0, len(part), MIB):
                await self._write(memoryview(part)[begin : begin + MIB])
        await self._write(b"")

    async def _send_stream(self, answer: Stream, incoming: Incoming) -> None:
        is_chunked = not incoming.is_http_1_0
        headers = {"Transfer-Encoding": "chunked"} if is_chunked else {}
        self._write_head(answer.status, answer.content_type, headers | {"Cache-Control": "no-cache"})
        async with aclosing(answer.pieces) as pieces:
            async for piece in pieces:
                await self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
        await self._write(b"0\r\n\r\n" if is_chunked else b"")

    def _write_head(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        phrase = http.HTTPStatus(status).phrase
        fields = {"Content-Type": content_type, **headers, "Connection": "close" if self._ends else "keep-alive"}
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        self._writer.write("\r\n".join(lines).encode("latin-1"))

    async def _write(self, data: bytes | memoryview) -> None:
        self._writer.write(data)
        async with asyncio.timeout(STALL_SECONDS):
            await self._writer.drain()

    async def _linger(self, incoming: Incoming) -> None:
        """Read what the client still sends, or it would lose the answer with the connection."""
        if incoming.is_complete:
            return
        with suppress(OSError):
            self._writer.write_eof()
        async with asyncio.timeout(LINGER_SECONDS):
            while await self._reader.read(READ_BYTES):
                pass


async def _answered(handler: Callable[[Request], Awaitable[Answer | Stream]], request: Request) -> Answer | Stream:
    try:
        return await handler(request)
    except Refusal as refusal:
        return refused(refusal)
    except Exception:
        with suppress(OSError):  # nobody reads the log
            traceback.print_exc(file=sys.stderr)
        return refused(Refusal(Code.INTERNAL, "[INTERNAL] the front failed; its log has the details"))
