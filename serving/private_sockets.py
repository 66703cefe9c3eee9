"""The sockets that tritonserver listens on: files that only the user who started it can reach.

No port is open, so no other user of the host gets to the server's model control, and no client to its parsers.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MAX_PATH = 107  # bytes of a socket's path
PORT = 1  # Triton wants one, and gRPC makes it part of the file's name


@dataclass(frozen=True, slots=True)
class PrivateSockets:
    """The sockets in `folder`."""

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


@contextmanager
def private_sockets() -> Iterator[PrivateSockets]:
    """A folder with access for this user alone, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="cosmos-triton-", dir=_parent()) as folder:  # with mode 700
        yield PrivateSockets(Path(folder))


def _parent() -> str:
    """The folder for temporary files, where sockets in it have names that Triton and gRPC understand."""
    parent = tempfile.gettempdir()
    longest = f"{parent}/cosmos-triton-12345678/metrics"
    is_plain = all(letter.isalnum() or letter in "/._-" for letter in parent) and parent.isascii()
    return parent if is_plain and len(os.fsencode(longest)) <= MAX_PATH else "/tmp"
