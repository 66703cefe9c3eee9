"""The server's HTTP interface for health and for the model repository: load, unload, index.

Loading a model runs code in the server, so these calls need a key that only the process that started the server knows.

tritonclient has the same calls, but its HTTP client keeps connections open, for which a stopping server waits, and
needs gevent; its gRPC client runs threads in a process that forks, and does not tell a refusal from a lost connection.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass

KEY_HEADER = "cosmos-supervisor-key"
# Interfaces closed to clients, which do not need them. With shared memory, one client could read another's tensors.
RESTRICTED = "model-repository,shared-memory,trace,logging"


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

    host: str
    port: int
    key: str
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
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.seconds)
        try:
            connection.request(method, path, headers={KEY_HEADER: self.key})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            connection.close()


def _first_line(body: bytes) -> str:
    """The message of an error body, {"error": "..."}, before its traceback."""
    try:
        return str(json.loads(body)["error"]).partition("\n")[0]
    except (ValueError, TypeError, KeyError):
        return body.decode(errors="replace").partition("\n")[0]
