"""The part of the server's HTTP interface that starts, stops and asks after models.

Whoever may load a model may run code in the server, so that these calls ask for a key which only the process that
started the server knows.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass

KEY_HEADER = "cosmos-supervisor-key"
# For clients: what is not needed to generate. Shared memory would let one client read another's tensors.
RESTRICTED = "model-repository,shared-memory,trace,logging"


class NoAnswerError(Exception):
    """The server did not answer in time, or not at all."""


class RefusedError(Exception):
    """The server answered with an error, which is the message."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """name: READY, LOADING, UNLOADING or UNAVAILABLE. reason: why it is unavailable; "unloaded" after an unload."""

    name: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RepositoryApi:
    """Calls are answered within `seconds`, or raise NoAnswerError."""

    host: str
    port: int
    key: str
    seconds: float = 5.0

    def is_live(self) -> bool:
        """Whether the server answers at all."""
        return self._status("/v2/health/live") == http.HTTPStatus.OK

    def is_ready(self) -> bool:
        """Whether every model is ready."""
        return self._status("/v2/health/ready") == http.HTTPStatus.OK

    def unload(self, model: str) -> None:
        """Let `model` finish what it has begun and then end; new requests to it are refused at once."""
        self._post(f"/v2/repository/models/{model}/unload")

    def load(self, model: str) -> None:
        """Start `model`. A load that takes longer than the time for an answer goes on regardless."""
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
    """Of an error, {"error": "..."}: what stands before the traceback."""
    try:
        return str(json.loads(body)["error"]).partition("\n")[0]
    except (ValueError, TypeError, KeyError):
        return body.decode(errors="replace").partition("\n")[0]
