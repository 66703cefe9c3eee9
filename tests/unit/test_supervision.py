"""The state machine of supervision: driven by a model of the server through random faults, and through chosen ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from cosmos_triton.runtime.heartbeat import Beat
from cosmos_triton.runtime.processes import ProcessStatus
from cosmos_triton.serving.observation import (
    Action,
    Call,
    CallState,
    GiveUp,
    Kill,
    Observation,
    Ready,
    Reload,
    Say,
    StageProcess,
    StartServer,
    StopServer,
)
from cosmos_triton.serving.repository_api import ModelState
from cosmos_triton.serving.server_machine import ServerMachine, ServerPhase
from cosmos_triton.serving.stage_machine import StageMachine

STEP = 0.2
SERVER = 1
STAGES = {"brief": 2, "long": 1, "pipeline": 1}
FATAL = "pipeline"
UNREADY = 5.0  # seconds within which readiness tells the truth
RECOVERED = 30.0  # within which a stage is back
RESTARTED = 60.0  # within which the server is back


@dataclass(slots=True)
class Process:
    pid: int
    state: str = "S"
    is_hung: bool = False  # deadlocked: it waits, without a heartbeat
    cpu: float = 0.0
    work: int = 0  # the number of its `execute`
    is_active: bool = True


@dataclass(slots=True)
class Model:
    """A stage as the server has it.

    loading: seconds until its load ends; infinite for one that is stuck.
    """

    state: str = "UNAVAILABLE"
    processes: list[Process] = field(default_factory=list)
    loading: float = 0.0
    reason: str = ""


class World:
    """A server that behaves as tritonserver does, a clock, and the supervisor's state machine.

    broken: stages that cannot be loaded.
    readiness: whether the server says that it is ready.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.machine = ServerMachine(StageMachine(name, count, name == FATAL) for name, count in STAGES.items())
        self.models = {name: Model() for name in STAGES}
        self.calls: dict[str, Call] = {}
        self.server: Process | None = None
        self.exit_code: int | None = None
        self.starting = 0.0
        self.answered_at = 0.0
        self.broken: set[str] = set()
        self.failures: dict[str, str] = {}
        self.given_up = ""
        self.actions: list[Action] = []
        self._pids = iter(range(100, 10**9))

    @property
    def now_ns(self) -> int:
        return round(self.now * 1e9)

    @property
    def answers(self) -> bool:
        return self.server is not None and self.server.state == "S" and not self.server.is_hung and self.starting <= 0

    @property
    def readiness(self) -> bool:
        """As Triton says it: a model whose process has died counts as ready until it is unloaded."""
        return self.answers and all(model.state == "READY" for model in self.models.values())

    @property
    def works(self) -> bool:
        return self.readiness and all(self.is_well(name) for name in STAGES)

    def is_well(self, name: str) -> bool:
        well = [p for p in self.models[name].processes if p.state == "S" and not p.is_hung]
        return len(well) >= STAGES[name]

    def spawn(self, name: str) -> None:
        model = self.models[name]
        model.processes += [Process(next(self._pids)) for _ in range(STAGES[name])]
        model.state, model.loading = "LOADING", 1.0

    def observe(self) -> Observation:
        if self.answers:
            self.answered_at = self.now
        return Observation(
            now=self.now,
            server=ProcessStatus(SERVER, self.server.state, 0, 0.0) if self.server else None,
            exit_code=self.exit_code,
            processes={
                name: tuple(
                    StageProcess(
                        ProcessStatus(p.pid, p.state, SERVER, p.cpu),
                        None
                        if model.state == "LOADING"
                        else Beat(0 if p.is_hung or p.state == "T" else self.now_ns, p.work),
                        p.is_active,
                    )
                    for p in model.processes
                )
                for name, model in self.models.items()
                if model.processes
            },
            states={name: ModelState(model.state, model.reason) for name, model in self.models.items()},
            states_at=self.answered_at,
            answered_at=self.answered_at,
            is_ready=self.readiness,
            failures=dict(self.failures),
            calls=dict(self.calls),
        )

    def advance(self) -> None:
        """One step of the world, and one of the machine."""
        self.now += STEP
        if self.server:
            self.starting -= STEP
        for name, model in self.models.items():
            if model.state != "LOADING":
                continue
            model.loading -= STEP
            if name in self.broken:
                self._end_load(name, "UNAVAILABLE", "ValueError: broken")
            elif len(model.processes) < STAGES[name] and model.loading != float("inf"):
                self._end_load(name, "UNAVAILABLE", "Stub process is not healthy.")
            elif model.loading <= 0 and self.is_well(name):
                self._end_load(name, "READY")
        self.actions = self.machine.step(self.observe())
        for action in self.actions:
            self._act(action)

    def _end_load(self, name: str, state: str, reason: str = "") -> None:
        self.models[name].state, self.models[name].reason = state, reason
        if reason and self.machine.phase is ServerPhase.STARTING:
            self.failures[name] = reason
        if self.calls.get(name, Call(CallState.ENDED)).state is CallState.RUNNING:
            self.calls[name] = Call(CallState.REFUSED if reason else CallState.ENDED, self.now - STEP, reason)

    def _act(self, action: Action) -> None:
        match action:
            case Kill(pids):
                for model in self.models.values():
                    model.processes = [p for p in model.processes if p.pid not in pids]
            case Reload(name):
                assert self.server
                self.models[name].processes = []
                self.spawn(name)
                self.calls[name] = Call(CallState.RUNNING)
            case StopServer():
                self.server, self.exit_code, self.models = None, None, {name: Model() for name in STAGES}
                self.calls.clear()
                self.failures.clear()
            case StartServer():
                assert self.server is None
                self.server, self.starting = Process(SERVER), 3.0
                for name in STAGES:
                    self.spawn(name)
            case GiveUp(cause):
                self.given_up = cause
            case Say() | Ready():
                pass

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Seconds that it took; `seconds` where it was not until then."""
        began = self.now
        while self.now - began < seconds and not self.given_up and not until():
            self.advance()
        return self.now - began

    def runs_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        self.run(seconds, condition)
        return condition()


@pytest.fixture
def world() -> World:
    world = World()
    assert world.runs_until(lambda: world.works and world.machine.phase is ServerPhase.SERVING, 30)
    return world


def kill(world: World, name: str) -> None:
    world.models[name].processes = world.models[name].processes[1:]


def stop(world: World, name: str) -> None:
    for process in world.models[name].processes[:1]:
        process.state = "T"


def hang(world: World, name: str) -> None:
    if world.models[name].state == "READY":  # a load may take minutes, also of one that does not go on
        for process in world.models[name].processes[:1]:
            process.is_hung = True


def kill_all_early(world: World, name: str) -> None:
    """Before its first word: the server waits for ever, if it is loading."""
    model = world.models[name]
    model.processes = []
    if model.state == "LOADING":
        model.loading = float("inf")


def kill_server(world: World, _: str) -> None:
    world.server, world.exit_code = None, -9
    world.models = {name: Model() for name in STAGES}


def stop_server(world: World, _: str) -> None:
    if world.server:
        world.server.state = "T"


def hang_server(world: World, _: str) -> None:
    if world.server and world.starting <= 0:
        world.server.is_hung = True


STAGE_FAULTS = [kill, stop, hang, kill_all_early]
FAULTS = [*STAGE_FAULTS, kill_server, stop_server, hang_server]


def faults(seed: int) -> Iterator[tuple[float, Callable[[World, str], None], str]]:
    """Seconds to wait, a fault, and the stage that it befalls."""
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 5)):
        yield draw.choice([0.0, 0.2, 0.4, 1.0, 3.0, 15.0]), draw.choice(FAULTS), draw.choice(list(STAGES))


@pytest.mark.parametrize("seed", range(100))
def test_whatever_happens_it_serves_again_in_time_and_readiness_is_true(world: World, seed: int) -> None:
    for pause, fault, stage in faults(seed):
        world.run(pause)
        fault(world, stage)
        lied = world.run(2 * UNREADY, until=lambda: world.works or not world.readiness)
        assert lied <= UNREADY, "ready with a stage down"
    assert world.runs_until(lambda: world.works, RESTARTED), world.given_up
    world.run(12)
    assert world.works, "it does not last"


@pytest.mark.parametrize("fault", STAGE_FAULTS)
def test_dead_or_hung_stage_is_replaced_and_the_others_are_left_alone(
    world: World, fault: Callable[[World, str], None]
) -> None:
    others = [process.pid for process in world.models["long"].processes + world.models["pipeline"].processes]
    fault(world, "brief")
    assert world.runs_until(lambda: not world.readiness, UNREADY)
    assert world.runs_until(lambda: world.works, RECOVERED)
    assert [p.pid for p in world.models["long"].processes + world.models["pipeline"].processes] == others


@pytest.mark.parametrize("fault", STAGE_FAULTS)
def test_stage_whose_requests_never_end_restarts_the_server(world: World, fault: Callable[[World, str], None]) -> None:
    fault(world, FATAL)
    assert world.runs_until(lambda: world.server is None, UNREADY)
    assert world.runs_until(lambda: world.works, RESTARTED)


def test_stages_that_are_loaded_wait_for_one_that_takes_minutes() -> None:
    """It uses the CPU, and they do not; nor does an instance of it that is loaded before the other."""
    world = World()
    world.run(0.2)
    world.starting = 600
    slow = world.models["brief"]
    slow.loading = 600
    pids = [process.pid for model in world.models.values() for process in model.processes]

    def work() -> bool:
        slow.processes[0].cpu += 0.1
        return False

    world.run(580, work)
    assert world.runs_until(lambda: world.works, 60)
    assert [process.pid for model in world.models.values() for process in model.processes] == pids


def test_load_that_does_not_go_on_is_tried_again() -> None:
    world = World()
    world.run(0.2)
    world.starting = world.models["long"].loading = 100_000.0
    assert world.runs_until(lambda: world.works, 200)


def test_death_between_ready_and_the_first_look_is_seen() -> None:
    world = World()
    assert world.runs_until(lambda: any(isinstance(action, Ready) for action in world.actions), 30)
    world.models["long"].processes = []
    assert world.runs_until(lambda: not world.readiness, UNREADY)
    assert world.runs_until(lambda: world.works, RECOVERED)


def test_stage_killed_again_and_again_in_its_reload_comes_back_and_others_meanwhile(world: World) -> None:
    kill(world, "long")
    assert world.runs_until(lambda: world.models["long"].state == "LOADING", UNREADY)
    kill_all_early(world, "long")  # its load is stuck
    kill(world, "brief")
    assert world.runs_until(lambda: world.is_well("brief") and world.models["brief"].state == "READY", 7)
    assert world.models["long"].state == "LOADING"
    assert world.runs_until(lambda: world.works, RESTARTED)


def test_stage_that_works_without_a_heartbeat_is_given_a_minute(world: World) -> None:
    (process,) = world.models["long"].processes
    process.is_hung, process.state = True, "R"
    world.run(50)
    assert world.models["long"].processes == [process]
    assert world.runs_until(lambda: process not in world.models["long"].processes, 15)


def test_stage_that_waits_for_ever_at_work_is_replaced(world: World) -> None:
    """It leaves the interpreter free, so its heart beats."""
    (process,) = world.models["long"].processes
    process.work, process.is_active = 1, False
    assert world.runs_until(lambda: process not in world.models["long"].processes, 12)
    assert world.runs_until(lambda: world.works, RECOVERED)


@pytest.mark.parametrize("sign", ["thread", "cpu", "work"])
def test_stage_at_work_with_a_sign_of_it_is_left_alone(world: World, sign: str) -> None:
    (process,) = world.models["long"].processes
    process.work, process.is_active = 1, False
    for _ in range(300):
        world.run(1)
        process.is_active = sign == "thread"
        process.cpu += 0.01 * (sign == "cpu")
        process.work += sign == "work"
        world.advance()
        process.is_active = False
    assert world.models["long"].processes == [process]


def test_time_in_which_the_supervisor_did_not_run_is_nobodys_fault(world: World) -> None:
    pids = [process.pid for model in world.models.values() for process in model.processes]
    for model in world.models.values():
        for process in model.processes:
            process.is_hung = True
    world.advance()
    world.now += 3600
    world.advance()
    for model in world.models.values():
        for process in model.processes:
            process.is_hung = False
    world.run(10)
    assert [process.pid for model in world.models.values() for process in model.processes] == pids


def test_stage_that_cannot_be_loaded_any_more_is_given_up(world: World) -> None:
    world.broken.add("brief")
    kill(world, "brief")
    assert world.run(120) < 120
    assert world.given_up == "gave up after 3 attempts to start the server: brief: ValueError: broken"


def test_stage_that_never_lives_long_is_given_up(world: World) -> None:
    def die_when_ready() -> bool:
        if world.models["brief"].state == "READY":
            kill(world, "brief")
        return False

    assert world.run(600, die_when_ready) < 600
    assert "brief has died 20 times" in world.given_up


def test_server_that_never_lives_long_is_given_up(world: World) -> None:
    def die_when_ready() -> bool:
        if world.works:
            kill_server(world, "")
        return False

    assert world.run(600, die_when_ready) < 600
    assert "gave up after 10 restarts in 10 minutes" in world.given_up


def test_first_start_with_a_broken_model_is_not_tried_again() -> None:
    world = World()
    world.broken.add("long")
    assert world.run(60) < 10
    assert world.given_up == "long: ValueError: broken"
