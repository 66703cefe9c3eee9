"""A real tritonserver without `serve` around it: on the toy pipeline of client_toy_repository/, for the tests of the
client, or on a few models of another repository.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cosmos_triton.serving import server_binary
from cosmos_triton.serving.ports import free_ports
from cosmos_triton.serving.repository_api import RepositoryApi
from cosmos_triton.serving.run_directory import render

REPOSITORY = Path(__file__).parent / "client_toy_repository"
READY_SECONDS = 60
STOP_SECONDS = 20


@dataclass(frozen=True, slots=True)
class ToyServer:
    """`urls` by protocol."""

    process: subprocess.Popen[bytes]
    urls: dict[str, str]
    run_dir: Path
    api: RepositoryApi

    def become(self, deployment: str) -> None:
        """Load the toy again, as another deployment."""
        for model in render(REPOSITORY, self.run_dir, parameters={"deployment": deployment}):
            self.api.load(model)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def running_toy(
    folder: Path,
    *,
    ports: tuple[int, int] | None = None,
    repository: Path = REPOSITORY,
    deployment: str = "4b",
    without: Collection[str] = (),
) -> Iterator[ToyServer]:
    """Start a server, by default on free ports of this machine, and stop it at the end. Its log is in the folder."""
    run_dir = folder / "run"
    run_dir.mkdir(parents=True)
    render(repository, run_dir, parameters={"deployment": deployment}, without=without)
    http_port, grpc_port = ports or free_ports(2)
    log = folder / "server.log"
    with log.open("wb") as sink:
        process = _start(run_dir, http_port, grpc_port, sink.fileno())
    urls = {"http": f"127.0.0.1:{http_port}", "grpc": f"127.0.0.1:{grpc_port}"}
    server = ToyServer(process, urls, run_dir, RepositoryApi("127.0.0.1", http_port, key="", seconds=30))
    try:
        until(server.api.is_ready, seconds=READY_SECONDS, otherwise=lambda: log.read_text()[-2000:])
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()


def until(condition: Callable[[], object], *, seconds: float, otherwise: Callable[[], str] = lambda: "") -> None:
    """Wait for a condition; fail when it does not come true in time."""
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, otherwise() or f"{condition}: not within {seconds} s"
        time.sleep(0.02)


def scenario(**plays: object) -> bytes:
    """A `visual_input` that the toy plays: see its model.py."""
    return b"toy" + json.dumps(plays).encode()


def notes(path: Path) -> list[dict[str, object]]:
    """What the toy noted so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def noted(path: Path) -> list[object]:
    return [note["what"] for note in notes(path)]


def _start(run_dir: Path, http_port: int, grpc_port: int, sink: int) -> subprocess.Popen[bytes]:
    binary = server_binary.find()
    command = [
        binary.executable,
        f"--model-repository={run_dir}",
        f"--backend-directory={binary.backends}",
        f"--cache-directory={binary.caches}",
        "--http-address=127.0.0.1",
        f"--http-port={http_port}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc_port}",
        "--allow-metrics=false",
        "--disable-auto-complete-config",
        "--model-control-mode=explicit",
        "--load-model=*",
    ]
    environment = binary.environment(run_dir.with_name(f"{run_dir.name}-lib"))
    return subprocess.Popen(command, env=environment, stdout=sink, stderr=sink, start_new_session=True)
