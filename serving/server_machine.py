"""The life of a server with its stages: the state machine that supervision is, without side effects.

    DOWN ──after a pause──► STARTING ──ready──► SERVING
     ▲                         │                   │
     └──────── restart ◄───────┴───────────────────┴──► given up

Every state has a time limit, and each of its ends leads on: a stage that is not up is loaded again, or the server is
started again, or it is given up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from cosmos_triton.serving.hang_detector import LOAD_HANGS, MAX_STEP, HangDetector
from cosmos_triton.serving.observation import (
    Action,
    GiveUp,
    Kill,
    Observation,
    Ready,
    Say,
    StageProcess,
    StartServer,
    StopServer,
)
from cosmos_triton.serving.restart_budget import MAX_RESTARTS, WINDOW_SECONDS, RestartBudget
from cosmos_triton.serving.stage_machine import (
    STAGE_DIED,
    Phase,
    RestartNeededError,
    StageGivenUpError,
    StageMachine,
    loads_with_process,
)

START_SECONDS = 1800  # to load every stage
START_ATTEMPTS = 3  # in a row
SILENT_SECONDS = 10  # after which a server that does not answer counts as hung
LOAD_THREADS = 4  # stages that the server loads at a time


class ServerPhase(Enum):
    DOWN = "down"
    STARTING = "starting"
    SERVING = "serving"


class _StartFailedError(Exception):
    """`is_final`: whether another attempt would end in the same way."""

    def __init__(self, cause: str, *, is_final: bool) -> None:
        super().__init__(cause)
        self.is_final = is_final


class ServerMachine:
    """Decides from one observation after another what is done.

    phase: DOWN until the first step, which starts the server.
    """

    def __init__(self, stages: Iterable[StageMachine]) -> None:
        self.phase = ServerPhase.DOWN
        self.stages = {stage.name: stage for stage in stages}
        self._detector = HangDetector()
        self._budget = RestartBudget()
        self._last: float | None = None
        self._since = 0.0  # when the phase began
        self._elapsed = 0.0  # in the phase
        self._pause = 0.0  # before the next start
        self._answered_at = 0.0
        self._silent = 0.0
        self._failed_starts = 0
        self._has_been_ready = False

    def step(self, seen: Observation) -> list[Action]:
        """What to do now; called every fraction of a second."""
        step = 0.0 if self._last is None else min(seen.now - self._last, MAX_STEP)
        self._last = seen.now
        self._elapsed += step
        hung = self.hung(seen)
        actions: list[Action] = [Kill(tuple(hung))] if hung else []
        if self.phase is ServerPhase.STARTING:
            actions += [Say(f"{reason}: process {pid}, while it starts") for pid, reason in hung.items()]
        try:
            if self.phase is ServerPhase.DOWN:
                actions += self._start(seen)
            elif self.phase is ServerPhase.STARTING:
                actions += self._starting(seen, hung, step)
            else:
                actions += self._serving(seen, hung, step)
        except _StartFailedError as failure:
            actions += self._failed_start(seen, failure)
        except RestartNeededError as cause:
            actions += self._restart(seen, str(cause))
        except StageGivenUpError as cause:
            actions.append(GiveUp(f"gave up: {cause}"))
        return actions

    def hung(self, seen: Observation) -> dict[int, str]:
        """The processes of stages that hang or have not ended in time, each with a reason."""
        processes = [process for processes in seen.processes.values() for process in processes]
        loading = [stage.current(seen) for stage in self.stages.values() if stage.is_loading(seen)]
        server = [StageProcess(seen.server)] if seen.server else []
        pids = {process.pid for instances in loading for process in instances}
        hung = self._detector.look(seen.now, [*server, *processes], loading=pids)
        for instances in loading:
            # An instance that has been loaded waits for the others.
            if any(hung.get(process.pid) != LOAD_HANGS for process in instances):
                for process in instances:
                    if hung.get(process.pid) == LOAD_HANGS:
                        del hung[process.pid]
        return hung

    def lost(self, seen: Observation) -> set[str]:
        """Stages without a process, whose requests never end."""
        return {
            name for name, stage in self.stages.items() if stage.is_fatal and len(stage.current(seen)) < stage.instances
        }

    def _start(self, seen: Observation) -> list[Action]:
        if self._elapsed < self._pause:
            return []
        self._enter(ServerPhase.STARTING, seen.now)
        for stage in self.stages.values():
            stage.restart(seen.now)
        return [StartServer()]

    def _enter(self, phase: ServerPhase, now: float) -> None:
        self.phase, self._since = phase, now
        self._elapsed = self._silent = 0.0

    def _starting(self, seen: Observation, hung: Mapping[int, str], step: float) -> list[Action]:
        if seen.failures:
            cause = "; ".join(f"{model}: {reason}" for model, reason in seen.failures.items())
            raise _StartFailedError(cause, is_final=not all(STAGE_DIED in reason for reason in seen.failures.values()))
        if seen.exit_code is not None:
            cause = f"tritonserver: {seen.last_error or f'ended with code {seen.exit_code}'}"
            raise _StartFailedError(cause, is_final=seen.exit_code >= 0)
        self._require_running(seen, hung)
        if seen.is_ready and seen.answered_at > self._since:
            return self._ready(seen)
        if self._elapsed >= START_SECONDS:
            raise _StartFailedError(f"tritonserver: not ready after {START_SECONDS} seconds", is_final=True)
        can_load = loads_with_process(self.stages.values(), seen) < LOAD_THREADS
        for stage in self.stages.values():
            state = seen.states.get(stage.name)
            if state and state.name == "LOADING":
                stage.wait_for_process(_living(stage, seen, hung), step, can_load=can_load)
        return []

    def _ready(self, seen: Observation) -> list[Action]:
        self._enter(ServerPhase.SERVING, seen.now)
        self._failed_starts, self._answered_at = 0, seen.answered_at
        for stage in self.stages.values():
            stage.enter(Phase.UP, seen.now)
        again: list[Action] = [Say("the server is ready again")] if self._has_been_ready else []
        self._has_been_ready = True
        return [*again, Ready()]

    def _serving(self, seen: Observation, hung: Mapping[int, str], step: float) -> list[Action]:
        if seen.exit_code is not None:
            raise RestartNeededError(f"tritonserver ended with code {seen.exit_code}")
        self._require_running(seen, hung)
        self._silent = self._silent + step if seen.answered_at == self._answered_at else 0.0
        self._answered_at = seen.answered_at
        if self._silent >= SILENT_SECONDS:
            raise RestartNeededError("tritonserver does not answer")
        overdue = [pid for stage in self.stages.values() for pid in stage.overdue(seen, step)]
        actions: list[Action] = [Kill(tuple(overdue))] if overdue else []
        up = [stage for stage in self.stages.values() if stage.phase is Phase.UP]
        reloading = [stage for stage in self.stages.values() if stage.phase is Phase.RELOADING]
        failed = [stage for stage in up if stage.has_failed(seen, _living(stage, seen, hung), step)]
        if failed:
            reasons = {stage.name: _reason(stage, seen, hung) for stage in failed}
            actions += [
                Say(f"{reason}: {', '.join(sorted(name for name in reasons if reasons[name] == reason))}")
                for reason in sorted(set(reasons.values()))
            ]
            # Those whose death needs a restart of the server first: then nothing is reloaded.
            for stage in sorted(failed, key=lambda stage: not stage.is_fatal):
                actions.append(stage.fail(seen, reasons[stage.name]))
        can_load = loads_with_process(self.stages.values(), seen) < LOAD_THREADS
        for stage in reloading:
            actions += stage.reload_step(seen, _living(stage, seen, hung), step, can_load=can_load)
        return actions

    def _require_running(self, seen: Observation, hung: Mapping[int, str]) -> None:
        if seen.server and seen.server.pid in hung:
            raise RestartNeededError(f"tritonserver {hung[seen.server.pid]}")

    def _failed_start(self, seen: Observation, failure: _StartFailedError) -> list[Action]:
        self._failed_starts += 1
        if failure.is_final and not self._has_been_ready:
            return [GiveUp(str(failure))]
        if self._failed_starts >= START_ATTEMPTS:
            return [GiveUp(f"gave up after {START_ATTEMPTS} attempts to start the server: {failure}")]
        return self._restart(seen, str(failure))

    def _restart(self, seen: Observation, cause: str) -> list[Action]:
        pause = self._budget.next(seen.now)
        if pause is None:
            return [GiveUp(f"gave up after {MAX_RESTARTS} restarts in {WINDOW_SECONDS // 60} minutes: {cause}")]
        self._pause = pause
        self._enter(ServerPhase.DOWN, seen.now)
        return [Say(f"restarting the server: {cause}"), StopServer()]


def _living(stage: StageMachine, seen: Observation, hung: Mapping[int, str]) -> tuple[StageProcess, ...]:
    """Its processes, without those that hang, which are being killed."""
    return tuple(process for process in stage.current(seen) if process.pid not in hung)


def _reason(stage: StageMachine, seen: Observation, hung: Mapping[int, str]) -> str:
    return next((hung[process.pid] for process in stage.current(seen) if process.pid in hung), "died")
