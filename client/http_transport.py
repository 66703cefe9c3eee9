"""HTTP transport: one response per request, in Triton's binary tensor format.

There is no progress: Triton streams over HTTP in JSON only, which cannot hold a video's bytes. Closing the connection
cancels its request.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from cosmos_triton.client.errors import Cancelled, DeadlineExceeded, ServerFailed, ServerUnreachable, server_error
from cosmos_triton.client.tensors import MODEL, Tensor, bytes_of

DEFAULT_URL = "localhost:8000"

_PROBE_SECONDS = 5.0
_CODES = {400: "INVALID_ARG", 404: "NOT_FOUND", 503: "UNAVAILABLE"}
_HEADER_LENGTH = "Inference-Header-Content-Length"  # length of the JSON in front of the tensors


class HttpTransport:
    """One connection per request, never through a proxy. Thread-safe."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._connections: set[http.client.HTTPConnection] = set()
        self._is_closed = False

    def infer(self, tensors: Sequence[Tensor], *, deadline: float | None) -> Generator[dict[str, bytes]]:
        """The only response, as a dictionary from output name to content."""
        inputs = [
            {"name": t.name, "datatype": t.datatype, "shape": [1], "parameters": {"binary_data_size": len(t.raw)}}
            for t in tensors
        ]
        header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        body = header + b"".join(tensor.raw for tensor in tensors)
        headers, content = self._request(
            "POST", f"/v2/models/{MODEL}/infer", body, {_HEADER_LENGTH: str(len(header))}, deadline=deadline
        )
        try:
            outputs = _outputs(content, header_length=int(headers[_HEADER_LENGTH]))
        except (ValueError, LookupError, TypeError):
            raise self._not_triton() from None
        yield outputs

    def model_parameters(self) -> dict[str, str]:
        """The `parameters` of the pipeline's config.pbtxt."""
        _, content = self._request("GET", f"/v2/models/{MODEL}/config", deadline=_PROBE_SECONDS)
        try:
            return {name: value["string_value"] for name, value in json.loads(content)["parameters"].items()}
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self._not_triton() from None

    def _not_triton(self) -> ServerFailed:
        return ServerFailed(f"what answers at {self._url} over http is not a Triton server, or a page in front of it")

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for connection in self._connections:
                if connection.sock:
                    with suppress(OSError):  # already disconnected
                        connection.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that is blocked on it

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        deadline: float | None,
    ) -> tuple[http.client.HTTPMessage, bytes]:
        ends_at = None if deadline is None else time.monotonic() + deadline
        try:
            connection = http.client.HTTPConnection(self._url, timeout=deadline)
            with self._lock:
                if self._is_closed:
                    raise Cancelled("the client is closed")
                self._connections.add(connection)
            try:
                connection.request(method, path, body, dict(headers or {}))
                if ends_at is not None and connection.sock:
                    connection.sock.settimeout(max(ends_at - time.monotonic(), 0.001))
                response = connection.getresponse()
                content = response.read()
            finally:
                with self._lock:
                    self._connections.discard(connection)
                connection.close()
        except TimeoutError:
            raise DeadlineExceeded(f"no answer from {self._url} within {deadline:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            if self._is_closed:
                raise Cancelled("the client is closed") from None
            raise ServerUnreachable(f"no connection to {self._url} over http: {error!r}") from None
        if response.status != http.HTTPStatus.OK:
            raise server_error(_error_text(content), code=_CODES.get(response.status, ""))
        return response.headers, content


def _outputs(content: bytes, *, header_length: int) -> dict[str, bytes]:
    outputs: dict[str, bytes] = {}
    start = header_length
    for output in json.loads(content[:header_length])["outputs"]:
        end = start + output["parameters"]["binary_data_size"]
        outputs[output["name"]] = bytes_of(content[start:end])
        start = end
    if start != len(content):
        raise ServerFailed(f"the answer has {len(content)} bytes, its header says {start}")
    return outputs


def _error_text(content: bytes) -> str:
    try:
        answer: Any = json.loads(content)
        return str(answer["error"])
    except (ValueError, KeyError, TypeError):  # an error page of a proxy
        return content.decode(errors="replace").strip() or "no message"
