"""Requests that no client library would send."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress

from support.server import Server

INFER = "/v2/models/world_generation/infer"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, END_HEADERS = 0, 1, 4, 4


def send(server: Server, *parts: bytes, seconds: float = 30) -> tuple[int, bytes]:
    """Send bytes as they are over HTTP; the status and body of the answer, 0 where the connection ends without one."""
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=seconds) as link:
        with suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                link.sendall(part)
        response = http.client.HTTPResponse(link)
        try:
            response.begin()
            return response.status, response.read()
        except (http.client.HTTPException, OSError):
            return 0, b""


def post(server: Server, body: bytes, headers: Iterable[str] = (), *, path: str = INFER) -> tuple[int, bytes]:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
    return send(server, "\r\n".join(lines).encode("latin-1"), body)


def post_json(server: Server, value: object, *, path: str = INFER) -> tuple[int, bytes]:
    return post(server, json.dumps(value).encode(), path=path)


def half_sent_grpc(server: Server, received: int) -> socket.socket:
    """A connection with a call of ModelInfer, of whose message of 60 MiB only `received` bytes are sent."""
    link = socket.create_connection(("127.0.0.1", server.grpc_port), timeout=10)
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/inference.GRPCInferenceService/ModelInfer",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(b"\0" + _hpack(name) + _hpack(value) for name, value in fields.items())
    message = b"\0" + struct.pack(">I", 60 * 2**20) + bytes(received)
    link.sendall(PREFACE + _frame(SETTINGS, 0, 0, b"") + _frame(HEADERS, END_HEADERS, 1, block))
    for begin in range(0, len(message), 16384):
        link.sendall(_frame(DATA, 0, 1, message[begin : begin + 16384]))
    return link


def _hpack(text: str) -> bytes:
    """A literal of less than 127 letters. RFC 7541, 5.2"""
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
