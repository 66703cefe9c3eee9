"""A `serve` under test: a real process with a real tritonserver, on free ports of the loopback.

Everything that tests serve is one of these: tests/support/toys.py and tests/support/pipeline_server.py say what.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cosmos_triton.pipeline.job_files import JobFiles, new_job_id
from cosmos_triton.runtime.processes import is_alive
from cosmos_triton.serving.ports import free_ports
from cosmos_triton.serving.processes import arguments_of, children_of


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request came to; status 0 when the connection broke."""

    status: int
    body: str
    seconds: float


class Server:
    """Starts with `start`; `folder` holds its run directory and its log.

    Args:
        command: up to the options for ports and run directory, which are added.
    """

    def __init__(self, command: Sequence[str | Path], folder: Path) -> None:
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        self.run_dir = folder / "run"
        self.log_file = folder / "log"
        self.command = [
            *map(str, command),
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
            f"--run-dir={self.run_dir}",
        ]
        self.process: subprocess.Popen[str] | None = None
        self.ready_line = ""

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def url_of(self, protocol: str) -> str:
        return self.grpc_url if protocol == "grpc" else self.url

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def output(self) -> str:
        """Standard output behind the ready line, of a process that has ended."""
        assert self._process.stdout
        return self._process.stdout.read()

    def launch(self, stderr: int | None = None) -> Server:
        """Start without waiting. The log goes to `stderr`, or else into `log_file`."""
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=stderr or log, text=True)
        return self

    def start(self, seconds: float = 300, *, stderr: int | None = None) -> Server:
        """Start, and wait for the line that says that it is ready."""
        self.launch(stderr)
        stdout = self._process.stdout
        assert stdout
        if select.select([stdout], [], [], seconds)[0]:
            self.ready_line = stdout.readline()
        if not self.ready_line:
            self.close()
            raise AssertionError(f"not ready; its log:\n{self.log}")
        return self

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """The exit code, once it has ended."""
        return self._process.wait(seconds)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal()
        return self.wait()

    def kill(self) -> None:
        """SIGKILL to it, its tritonserver and the stages, which are a process group."""
        group = self.triton_pid
        self._process.kill()
        self._process.wait()
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self.process and self.is_running:
            for _ in range(2):
                self.process.terminate()
                time.sleep(0.2)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process and self.process.stdout:
            self.process.stdout.close()

    @property
    def triton_pid(self) -> int:
        """Of the tritonserver itself."""
        (pid,) = self._children("/tritonserver")
        return pid

    @property
    def front_pid(self) -> int:
        """Of the process that clients connect to."""
        (pid,) = self._children("cosmos_triton.serving.front")
        return pid

    def reaper_pids(self) -> list[int]:
        """Of the process that cleans up when `serve` is killed; none while it is started again."""
        return self._children("reaper")

    def _children(self, argument: str) -> list[int]:
        """The children of `serve` with an argument that ends so."""
        children = children_of(self._process.pid)
        return [pid for pid in children if any(given.endswith(argument) for given in arguments_of(pid))]

    def processes(self) -> list[int]:
        """Of everything that it started, and itself."""
        children = children_of(self._process.pid)
        return [self._process.pid, *children, *(pid for child in children for pid in children_of(child))]

    def shared_memory_prefix(self) -> str:
        """In front of the names of everything of a running server in shared memory."""
        arguments = arguments_of(self.triton_pid)
        (prefix,) = (argument.partition("prefix-name=")[2] for argument in arguments if "prefix-name" in argument)
        return prefix

    def stub_pids(self, model: str) -> list[int]:
        """Of the processes that a model's instances run in."""
        path = f"/models/{model}/1/model.py"
        children = children_of(self.triton_pid)
        return [pid for pid in children if any(given.endswith(path) for given in arguments_of(pid))]

    @contextmanager
    def job(self) -> Iterator[str]:
        """The id of a living job, as the pipeline makes one: with it a stage can be called alone."""
        files, job = JobFiles(self.run_dir / "jobs"), new_job_id()
        files.begin(job)
        try:
            yield job
        finally:
            files.end(job)

    def left_processes(self) -> list[list[str]]:
        """Command lines of living processes that were started for this run directory."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [
            arguments for pid in pids if str(self.run_dir) in " ".join(arguments := arguments_of(pid)) and is_alive(pid)
        ]

    def request(self, path: str, body: object = None, *, seconds: float = 60) -> Answer:
        """GET /v2/`path`, or POST `body` as JSON."""
        began = time.monotonic()
        connection = http.client.HTTPConnection(self.url, timeout=seconds)
        try:
            connection.request(
                "GET" if body is None else "POST", f"/v2/{path}", None if body is None else json.dumps(body)
            )
            response = connection.getresponse()
            status, text = response.status, response.read().decode()
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException) as error:
            status, text = 0, repr(error)
        finally:
            connection.close()
        return Answer(status, text, time.monotonic() - began)

    def is_ready(self) -> bool:
        """No answer in time is none."""
        try:
            return self.request("health/ready", seconds=2).status == http.HTTPStatus.OK
        except TimeoutError:
            return False

    def wait_until(self, ready: bool, seconds: float) -> float:
        """Seconds until /v2/health/ready says so; fails after `seconds`."""

        def otherwise() -> str:
            return f"not {'ready' if ready else 'unready'} after {seconds} s; its log:\n{self.log}"

        return until(lambda: self.is_ready() is ready, seconds=seconds, otherwise=otherwise)

    @property
    def _process(self) -> subprocess.Popen[str]:
        assert self.process
        return self.process


def until(condition: Callable[[], object], *, seconds: float, otherwise: Callable[[], str] = lambda: "") -> float:
    """Wait for a condition, and return for how long; fail when it does not come true within `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, otherwise() or f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - began
