"""The life of one stage under its supervisor: a state machine without side effects.

STARTING ──the server is ready──► UP ──a process died or hangs──► RELOADING ──loaded──► UP
                                   │                                  │
                                   └── restart of the server ◄────────┴── refused, stuck or late
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from cosmos_triton.serving.observation import Action, Call, CallState, Observation, Reload, Say, StageProcess

LOAD_SECONDS = 900  # for a load whose process is alive
LOAD_ATTEMPTS = 4  # of one reload, of a stage whose process died meanwhile
REFUSED_ATTEMPTS = 2  # of one that refuses to be loaded, which it will most likely do again
STAGE_DIED = "is not healthy"  # in the server's message about a process that died
STUCK_SECONDS = 8.0  # for a load to have its processes. The server waits for ever for one that died early
MISSING_SECONDS = 2.0  # for which the server may call a stage ready that has too few processes, or the reverse
RETIRED_SECONDS = 600  # for the processes of before a reload, which finish their requests
SHORT_LIFE, MAX_SHORT_LIVES = 10, 20  # seconds; a stage that lives no longer, so many times in a row, is given up


class RestartNeededError(Exception):
    """Reloading the stage is not enough; the message is the cause."""


class StageGivenUpError(Exception):
    """Nothing helps; the message is the cause."""


class Phase(Enum):
    STARTING = "starting"
    UP = "up"
    RELOADING = "reloading"


@dataclass(slots=True)
class StageMachine:
    """One stage.

    instances: how many processes it has when it is up.
    is_fatal: whether requests that a process of it dies with never end unless the server is restarted.
    since: when the phase began. What the server said before that says nothing about it.
    elapsed: seconds in the phase.
    without_process: seconds for which its load could have had all of its processes, and had not.
    contradicted: seconds for which the server's word and the processes did not agree.
    retired: processes of before a reload, by pid; for how long.
    """

    name: str
    instances: int
    is_fatal: bool
    phase: Phase = Phase.STARTING
    since: float = 0.0
    elapsed: float = 0.0
    without_process: float = 0.0
    contradicted: float = 0.0
    attempts: int = 0
    short_lives: int = 0
    retired: dict[int, float] = field(default_factory=dict)

    def enter(self, phase: Phase, now: float) -> None:
        self.phase, self.since = phase, now
        self.elapsed = self.without_process = self.contradicted = 0.0

    def restart(self, now: float) -> None:
        """The server is started, with nothing left of an earlier one."""
        self.retired.clear()
        self.enter(Phase.STARTING, now)

    def current(self, seen: Observation) -> tuple[StageProcess, ...]:
        """Its processes, without those of before a reload."""
        return tuple(process for process in seen.processes.get(self.name, ()) if process.pid not in self.retired)

    def is_loading(self, seen: Observation) -> bool:
        return self.phase is not Phase.UP and not self.is_called_ready(seen)

    def is_called_ready(self, seen: Observation) -> bool:
        """Whether the server says that it is ready."""
        state = seen.states.get(self.name)
        return state is not None and state.name == "READY"

    def overdue(self, seen: Observation, step: float) -> list[int]:
        """Retired processes that have had their time to end."""
        alive = {process.pid for process in seen.processes.get(self.name, ())}
        self.retired = {pid: age + step for pid, age in self.retired.items() if pid in alive}
        return [pid for pid, age in self.retired.items() if age >= RETIRED_SECONDS]

    def wait_for_process(self, living: Sequence[StageProcess], step: float, *, can_load: bool) -> None:
        """While it loads. Raises RestartNeededError where its load is stuck.

        Args:
            can_load: whether the server has a thread left for its load.
        """
        has_all = len(living) >= self.instances
        self.without_process = 0.0 if has_all or not can_load else self.without_process + step
        if self.without_process >= STUCK_SECONDS:
            raise RestartNeededError(f"{self.name}: its load is stuck")

    def has_failed(self, seen: Observation, living: Sequence[StageProcess], step: float) -> bool:
        """Whether a stage that is up is up no more. Advances the time of that phase."""
        self.elapsed += step
        is_denied = seen.states_at > self.since and not self.is_called_ready(seen)
        self.contradicted = self.contradicted + step if is_denied else 0.0
        return len(living) < self.instances or self.contradicted >= MISSING_SECONDS

    def fail(self, seen: Observation, reason: str) -> Action:
        """The reload of a stage that is up no more.

        Raises:
            RestartNeededError: requests are lost that only a restart of the server ends.
            StageGivenUpError: it has died again and again.
        """
        if self.is_fatal:
            raise RestartNeededError(f"{self.name} {reason}, and its requests would never end")
        self.short_lives = self.short_lives + 1 if self.elapsed < SHORT_LIFE else 0
        if self.short_lives >= MAX_SHORT_LIVES:
            raise StageGivenUpError(f"{self.name} has died {self.short_lives} times, within {SHORT_LIFE} s each")
        self.attempts = 0
        return self._reload(seen)

    def _reload(self, seen: Observation) -> Action:
        self.attempts += 1
        self.retired |= {process.pid: 0.0 for process in self.current(seen)}
        self.enter(Phase.RELOADING, seen.now)
        return Reload(self.name)

    def reload_step(
        self, seen: Observation, living: Sequence[StageProcess], step: float, *, can_load: bool
    ) -> Sequence[Action]:
        """One step of a reload.

        Raises:
            RestartNeededError: it cannot be loaded.
        """
        self.elapsed += step
        call = seen.calls.get(self.name, Call(CallState.RUNNING))
        if call.state is CallState.REFUSED:
            return self._try_again(seen, call.reason)
        if call.state is CallState.ENDED and seen.states_at > call.ended_at:
            if self.is_called_ready(seen):
                if len(living) >= self.instances:
                    self.enter(Phase.UP, seen.now)
                    return [Say(f"{self.name}: ready again")]
                self.contradicted += step
                if self.contradicted >= MISSING_SECONDS:
                    return self._try_again(seen, f"its process {STAGE_DIED}")
                return []
            state = seen.states.get(self.name)
            if state and state.name == "UNAVAILABLE":
                return self._try_again(seen, state.reason)
        self.wait_for_process(living, step, can_load=can_load)
        if self.elapsed >= LOAD_SECONDS:
            raise RestartNeededError(f"{self.name} could not be loaded: not ready after {LOAD_SECONDS} s")
        return []

    def _try_again(self, seen: Observation, reason: str) -> Sequence[Action]:
        if self.attempts >= (LOAD_ATTEMPTS if STAGE_DIED in reason else REFUSED_ATTEMPTS):
            raise RestartNeededError(f"{self.name} could not be loaded: {reason}")
        return [Say(f"{self.name}: loading it again: {reason}"), self._reload(seen)]


def loads_with_process(machines: Collection[StageMachine], seen: Observation) -> int:
    """How many loads the server works on."""
    return sum(machine.is_loading(seen) and bool(machine.current(seen)) for machine in machines)
