"""The front's process, as `serve` runs it: started before tritonserver, replaced when it dies or hangs."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cosmos_triton.serving.addresses import Addresses, StartError
from cosmos_triton.serving.log_output import say
from cosmos_triton.serving.private_sockets import PrivateSockets
from cosmos_triton.serving.processes import die_with_parent

START_SECONDS = 60  # until it listens
HANG_SECONDS = 10  # without the sign of life that it gives each second
STOP_SECONDS = 5
PAUSE_SECONDS = 1  # before a dead one is replaced


@contextmanager
def front(addresses: Addresses, sockets: PrivateSockets, environment: Mapping[str, str]) -> Iterator[None]:
    """Clients can connect within this context; they get UNAVAILABLE while there is no tritonserver behind.

    A thread watches the process: it is replaced at any time, whatever happens to tritonserver meanwhile.

    Raises:
        StartError: it does not listen.
    """
    process = _FrontProcess(addresses, sockets, environment)
    process.start()
    stopping = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process, stopping), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stopping.set()
        while watcher.is_alive():  # it may be starting another one
            process.stop()
            watcher.join(0.1)


def _watch(process: _FrontProcess, stopping: threading.Event) -> None:
    while True:
        cause = process.wait_for_end()
        if stopping.is_set():
            return
        say(f"restarting the front: it {cause}")
        while not stopping.is_set():
            try:
                process.start()
                break
            except StartError as error:
                say(str(error))
                stopping.wait(PAUSE_SECONDS)


class _FrontProcess:
    def __init__(self, addresses: Addresses, sockets: PrivateSockets, environment: Mapping[str, str]) -> None:
        self._command = [
            *(sys.executable, "-m", "cosmos_triton.serving.front"),
            f"--host={addresses.host}",
            f"--http-port={addresses.http_port}",
            f"--grpc-port={addresses.grpc_port}",
            f"--metrics-port={addresses.metrics_port}",
            f"--sockets={sockets.folder}",
        ]
        # gRPC's lines about clients' errors would fill the log.
        self._environment = {**os.environ, **environment, "GRPC_VERBOSITY": "NONE"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when it listens. Raises StartError, and has ended it, when it does not."""
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C signals `serve` only, which ends this one last
            preexec_fn=die_with_parent,
        )
        if not self._is_alive_within(START_SECONDS):
            raise StartError(f"front: does not listen; {self._end()}")

    def wait_for_end(self) -> str:
        """Wait until it has died or hangs, and end it; returns what it did."""
        while self._is_alive_within(HANG_SECONDS):
            time.sleep(0.1)
        return self._end()

    def stop(self) -> None:
        """Let it finish the answers that it is sending."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _is_alive_within(self, seconds: float) -> bool:
        """Whether there is a sign of life within so many seconds."""
        assert self._process
        assert self._process.stdout
        pipe = self._process.stdout.fileno()
        return bool(select.select([pipe], [], [], seconds)[0]) and bool(self._process.stdout.read1(4096))  # type: ignore[attr-defined]

    def _end(self) -> str:
        assert self._process
        assert self._process.stdout
        try:
            said = f"ended with code {self._process.wait(1)}"
        except subprocess.TimeoutExpired:
            said = "does not answer"
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        return said
