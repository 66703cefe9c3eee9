"""A server whose stages can be held at work, so that a fault finds them there."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.paths import SUPPORT
from support.pipeline_server import PipelineServer
from support.server import until

WORK_SECONDS = 30  # within which a request has reached a stage
FAILED = 15  # within which a request that lost its stage has ended
UNREADY = 5  # within which readiness says so

Fault = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended that lost a stage.

    error: None where it was answered.
    failed, unready: seconds after the fault until it had ended, and until readiness said so.
    fault_at: on the monotonic clock.
    """

    error: BaseException | None
    failed: float
    unready: float
    fault_at: float


class HeldServer(PipelineServer):
    def __init__(self, deployment: str, checkpoints: Path, folder: Path) -> None:
        self.models = folder / "held"
        self.models.mkdir()
        script = [sys.executable, SUPPORT / "serve_held.py", self.models, "serve"]
        super().__init__(deployment, checkpoints, folder, serve=script)

    @contextmanager
    def hold(self, stage: str, how: str = "") -> Iterator[None]:
        """Requests that reach the stage stay there. `how` may be LOCKED or WAITING, of serve_held.py."""
        file, mark = self.models / "hold" / stage, self.models / "at_work" / stage
        mark.unlink(missing_ok=True)
        file.write_text(how)
        try:
            yield
        finally:
            file.unlink()

    def wait_at_work(self, stage: str) -> int:
        """The process id of the stage, once it has taken a request."""
        mark = self.models / "at_work" / stage
        until(lambda: mark.exists() and mark.read_text(), seconds=WORK_SECONDS, otherwise=lambda: self.log[-3000:])
        return int(mark.read_text())

    def strike(
        self, fault: Fault, *, at: str, request: Callable[[], object], how: str = "", unready_within: float = UNREADY
    ) -> Outcome:
        """Do something to the process of the stage at which a request is held."""

        def run() -> tuple[BaseException | None, float]:
            error: BaseException | None = None
            try:
                request()
            except Exception as caught:
                error = caught
            return error, time.monotonic()

        with ThreadPoolExecutor(1) as pool:
            with self.hold(at, how):
                ending: Future[tuple[BaseException | None, float]] = pool.submit(run)
                held = self.wait_at_work(at)
                fault_at = time.monotonic()
                fault(held)
                self.wait_until(ready=False, seconds=unready_within)
                unready = time.monotonic() - fault_at
            error, ended = ending.result(timeout=60)
        return Outcome(error, ended - fault_at, unready, fault_at)


def kill_it(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def stop_it(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
