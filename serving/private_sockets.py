"""The sockets that tritonserver listens on: files that only the user who started it can reach.

No port is open, so no other user of the host gets to the server's model control, and no client to its parsers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PORT = 1  # Triton wants one, and gRPC makes it part of the file's name


@dataclass(frozen=True, slots=True)
class PrivateSockets:
    """The sockets in `folder`, which nobody but this user can enter; their paths may have 107 bytes."""

    folder: Path

    @property
    def http(self) -> Path:
        """Health, metadata, statistics and model control."""
        return self.folder / "http"

    @property
    def grpc(self) -> Path:
        """Inference."""
        return self.folder / f"grpc:{PORT}"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics"

    def options(self) -> list[str]:
        """Those of tritonserver."""
        return [
            f"--{name}-{option}"
            for name in ("http", "grpc", "metrics")
            for option in (f"address=unix:{self.folder / name}", f"port={PORT}")
        ]

    def clear(self) -> None:
        """Remove the files of a server that has ended."""
        for socket in (self.http, self.grpc, self.metrics):
            socket.unlink(missing_ok=True)
