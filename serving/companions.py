"""Processes that `serve` runs beside its server: each is restarted alone when it ends or hangs."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from cosmos_triton.runtime.processes import process_status
from cosmos_triton.serving.hang_detector import MAX_STEP, STOPPED_SECONDS
from cosmos_triton.serving.log_output import say
from cosmos_triton.serving.restart_budget import MAX_RESTARTS, WINDOW_SECONDS, RestartBudget

PROBE_SECONDS = 0.5  # between two probes
SILENT_SECONDS = 4.0  # without a probe that succeeded, of a process that has passed one
START_SECONDS = 30.0  # to pass its first


class CompanionPhase(Enum):
    DOWN = "down"
    STARTING = "starting"
    UP = "up"


@dataclass(frozen=True, slots=True)
class CompanionObservation:
    """is_running, is_stopped: its process. answered_at: when it last passed its probe."""

    now: float
    is_running: bool
    is_stopped: bool
    answered_at: float


class CompanionAction(Enum):
    NOTHING = "nothing"
    START = "start"
    KILL = "kill"  # it is down then
    GIVE_UP = "give up"


class CompanionMachine:
    """The state machine of one, without side effects.

    cause: of the last KILL or GIVE_UP.
    """

    def __init__(self) -> None:
        self.phase = CompanionPhase.DOWN
        self.cause = ""
        self._budget = RestartBudget()
        self._last: float | None = None
        self._pause = 0.0
        self._elapsed = self._stopped = self._silent = 0.0
        self._answered_at = 0.0

    def step(self, seen: CompanionObservation) -> CompanionAction:
        step = 0.0 if self._last is None else min(seen.now - self._last, MAX_STEP)
        self._last = seen.now
        self._elapsed += step
        if self.phase is CompanionPhase.DOWN:
            if self._elapsed < self._pause:
                return CompanionAction.NOTHING
            self._enter(CompanionPhase.STARTING)
            return CompanionAction.START
        self._stopped = self._stopped + step if seen.is_stopped else 0.0
        if seen.answered_at != self._answered_at:
            self._answered_at, self._silent, self.phase = seen.answered_at, 0.0, CompanionPhase.UP
        else:
            self._silent += step
        limit = START_SECONDS if self.phase is CompanionPhase.STARTING else SILENT_SECONDS
        if not seen.is_running:
            return self._fail(seen.now, "died")
        if self._stopped >= STOPPED_SECONDS:
            return self._fail(seen.now, "stopped")
        if self._silent >= limit:
            return self._fail(seen.now, "does not answer")
        return CompanionAction.NOTHING

    def _fail(self, now: float, cause: str) -> CompanionAction:
        pause = self._budget.next(now)
        if pause is None:
            self.cause = f"gave up after {MAX_RESTARTS} restarts in {WINDOW_SECONDS // 60} minutes: {cause}"
            return CompanionAction.GIVE_UP
        self.cause, self._pause = cause, pause
        self._enter(CompanionPhase.DOWN)
        return CompanionAction.KILL

    def _enter(self, phase: CompanionPhase) -> None:
        self.phase = phase
        self._elapsed = self._stopped = self._silent = 0.0


class CompanionFailedError(Exception):
    """It was restarted too often."""


class Companion:
    """One process.

    Args:
        start: starts it.
        probe: whether it answers; may take seconds. Without one, a process that lives and is not stopped is well.
    """

    def __init__(
        self, name: str, start: Callable[[], subprocess.Popen[bytes]], probe: Callable[[], bool] | None = None
    ) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self._start = start
        self._has_probe = probe is not None
        self._machine = CompanionMachine()
        self._answered_at = 0.0
        if probe:
            threading.Thread(target=self._probe_for_ever, args=(probe,), name=f"probe-{name}", daemon=True).start()

    def look(self) -> None:
        """Do what has to be done; called every fraction of a second.

        Raises:
            CompanionFailedError: it was restarted too often.
        """
        now = time.monotonic()
        running = self.process if self.process and self.process.poll() is None else None
        status = process_status(running.pid) if running else None
        if running and not self._has_probe:
            self._answered_at = now
        seen = CompanionObservation(now, running is not None, bool(status and status.is_stopped), self._answered_at)
        action = self._machine.step(seen)
        if action is CompanionAction.START:
            self.process = self._start()
        elif action is CompanionAction.KILL:
            say(f"{self._machine.cause}: {self.name}")
            self.kill()
            self.look()  # to start it again at once, unless that has to wait
        elif action is CompanionAction.GIVE_UP:
            raise CompanionFailedError(f"{self.name}: {self._machine.cause}")

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                with suppress(OSError):
                    if stream:
                        stream.close()

    def _probe_for_ever(self, probe: Callable[[], bool]) -> None:
        while True:
            if self.process and probe():
                self._answered_at = time.monotonic()
            time.sleep(PROBE_SECONDS)
