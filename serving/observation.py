"""What the supervisor sees of its server, and what it may do about it: the state machines' inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from cosmos_triton.runtime.heartbeat import Beat
from cosmos_triton.runtime.processes import ProcessStatus
from cosmos_triton.serving.repository_api import ModelState


class CallState(Enum):
    """Of the latest reload of a model, an unload and a load that the server was asked for."""

    RUNNING = "running"
    ENDED = "ended"  # accepted; or unanswered so far, and may still succeed
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Call:
    """ended_at: when the answer came, or was no longer waited for. reason: of a refusal."""

    state: CallState
    ended_at: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StageProcess:
    """A living process of a stage.

    beat: its last heartbeat; None before the first.
    is_active: whether one of its threads was, where it is at work.
    """

    status: ProcessStatus
    beat: Beat | None = None
    is_active: bool = True

    @property
    def pid(self) -> int:
        return self.status.pid


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at a server and its stages. Times are of one monotonic clock, in seconds.

    server: the server's process; None when it has ended, with `exit_code`, which is negative for a signal.
    processes: the living processes of each model.
    states: of each model as the server said last, to a question of `states_at`; of a server that does not answer yet,
        as its log says.
    answered_at: when the server answered last.
    is_ready: its last answer about that.
    failures: causes of failed loads, by model, that the log holds.
    last_error: the last error in the log.
    calls: the latest reload of each model.
    """

    now: float
    server: ProcessStatus | None = None
    exit_code: int | None = None
    processes: Mapping[str, tuple[StageProcess, ...]] = field(default_factory=dict)
    states: Mapping[str, ModelState] = field(default_factory=dict)
    states_at: float = 0.0
    answered_at: float = 0.0
    is_ready: bool = False
    failures: Mapping[str, str] = field(default_factory=dict)
    last_error: str = ""
    calls: Mapping[str, Call] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Say:
    """A line for the log."""

    text: str


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL for processes of stages."""

    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reload:
    """Unload and load a model. The load must not wait for the unload: an unloaded model counts as ready."""

    model: str


@dataclass(frozen=True, slots=True)
class StopServer:
    """End the server with everything of it, in whatever state it is."""


@dataclass(frozen=True, slots=True)
class StartServer:
    pass


@dataclass(frozen=True, slots=True)
class Ready:
    """The server has become ready."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    cause: str


Action = Say | Kill | Reload | StopServer | StartServer | Ready | GiveUp
