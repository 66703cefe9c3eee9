"""A listening socket for HTTP, and the connections it has."""

from __future__ import annotations

import asyncio
import socket

from cosmos_triton.serving.front.budget import Budget
from cosmos_triton.serving.front.connection import Connection
from cosmos_triton.serving.front.http_messages import Router
from cosmos_triton.serving.front.limits import CONNECTIONS

BACKLOG = 4096
BUFFER_BYTES = 256 * 1024  # of a connection, before its client has to wait
OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    # A client whose machine is gone, without a word: after 30 s, three probes, 10 s apart.
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    # Or the body of an answer waits 40 ms for the acknowledgement of its headers.
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


class Listener:
    """Of the connections above the bound, the one that has been idle longest is ended."""

    def __init__(self, router: Router, budget: Budget) -> None:
        self._router, self._budget = router, budget
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> None:
        self._server = await asyncio.start_server(
            self._accept, sock=listening, backlog=BACKLOG, limit=BUFFER_BYTES // 2
        )

    async def stop(self, seconds: float) -> None:
        """Take no more connections; end idle ones at once and others behind their answers, within `seconds`."""
        if self._server:
            self._server.close()
        for connection in self._connections:
            connection.end()
        if tasks := list(self._connections.values()):
            await asyncio.wait(tasks, timeout=seconds)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer, self._router, self._budget)
        if not self._has_room():
            await connection.turn_away()
            return
        link = writer.get_extra_info("socket")
        for option in OPTIONS:
            link.setsockopt(*option)
        task = asyncio.current_task()
        assert task
        self._connections[connection] = task
        try:
            await connection.serve()
        finally:
            del self._connections[connection]

    def _has_room(self) -> bool:
        if len(self._connections) < CONNECTIONS:
            return True
        oldest = next((each for each in self._connections if each.is_idle), None)
        if oldest:
            oldest.end()
        return oldest is not None
