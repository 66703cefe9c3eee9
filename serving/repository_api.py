"""The server's HTTP interface for health and for the model repository: load, unload, index.

Loading a model runs code in the server, so it listens for these calls on a socket that only its own user can reach.

tritonclient has the same calls, but its HTTP client keeps connections open, for which a stopping server waits, and
needs gevent; its gRPC client runs threads in a process that forks, and does not tell a refusal from a lost connection.
"""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path


class NoAnswerError(Exception):
    """The server did not answer within the timeout, or the connection failed."""


class RefusedError(Exception):
    """The server answered with an error, which is the message."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """name: READY, LOADING, UNLOADING or UNAVAILABLE. reason: why it is unavailable; "unloaded" after an unload."""

    name: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RepositoryApi:
    """Calls raise NoAnswerError after `seconds` without an answer."""

    socket: Path
    seconds: float = 5.0

    def is_live(self) -> bool:
        """Whether the server answers."""
        return self._status("/v2/health/live") == http.HTTPStatus.OK

    def is_ready(self) -> bool:
        """Whether every model is ready."""
        return self._status("/v2/health/ready") == http.HTTPStatus.OK

    def unload(self, model: str) -> None:
        """Stop `model` after its running requests; new requests to it are refused at once."""
        self._post(f"/v2/repository/models/{model}/unload")

    def load(self, model: str) -> None:
        """Start `model`. A load that takes longer than the timeout goes on after NoAnswerError."""
        self._post(f"/v2/repository/models/{model}/load")

    def states(self) -> dict[str, ModelState]:
        """The state of every model."""
        index = json.loads(self._post("/v2/repository/index"))
        return {entry["name"]: ModelState(entry.get("state", ""), entry.get("reason", "")) for entry in index}

    def _status(self, path: str) -> int:
        try:
            return self._request("GET", path)[0]
        except NoAnswerError:
            return 0

    def _post(self, path: str) -> bytes:
        status, body = self._request("POST", path)
        if status != http.HTTPStatus.OK:
            raise RefusedError(_first_line(body))
        return body

    def _request(self, method: str, path: str) -> tuple[int, bytes]:
        connection = _UnixConnection(self.socket, self.seconds)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _first_line(body: bytes) -> str:
    """The message of an error body, {"error": "..."}, before its traceback."""
    try:
        return str(json.loads(body)["error"]).partition("\n")[0]
    except (ValueError, TypeError, KeyError):
        return body.decode(errors="replace").partition("\n")[0]
