"""Processes beside the server are restarted alone, when they end, stop or no longer answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cosmos_triton.serving.companions import CompanionAction, CompanionMachine, CompanionObservation, CompanionPhase

STEP = 0.2
NOTICED = 5.0  # seconds


class World:
    """A companion that answers half a second after its start, and its state machine."""

    def __init__(self) -> None:
        self.now = 100.0
        self.machine = CompanionMachine()
        self.starts = 0
        self.is_running = self.is_stopped = self.is_hung = self.has_given_up = False
        self.started_at = self.answered_at = 0.0

    def advance(self) -> None:
        self.now += STEP
        if self.is_running and not self.is_stopped and not self.is_hung and self.now > self.started_at + 0.5:
            self.answered_at = self.now
        seen = CompanionObservation(self.now, self.is_running, self.is_stopped, self.answered_at)
        match self.machine.step(seen):
            case CompanionAction.START:
                self.starts, self.started_at = self.starts + 1, self.now
                self.is_running, self.is_stopped, self.is_hung = True, False, False
            case CompanionAction.KILL:
                self.is_running = False
            case CompanionAction.GIVE_UP:
                self.has_given_up = True

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.advance()


@pytest.fixture
def world() -> World:
    world = World()
    world.run(3)
    assert world.machine.phase is CompanionPhase.UP
    assert world.starts == 1
    return world


def end(world: World) -> None:
    world.is_running = False


def stop(world: World) -> None:
    world.is_stopped = True


def hang(world: World) -> None:
    world.is_hung = True


@pytest.mark.parametrize("fault", [end, stop, hang])
def test_one_that_is_lost_is_started_again(world: World, fault: Callable[[World], None]) -> None:
    fault(world)
    world.run(NOTICED)
    assert world.starts == 2
    world.run(3)
    assert world.machine.phase is CompanionPhase.UP
    world.run(60)
    assert world.starts == 2


def test_one_that_never_answers_is_given_up(world: World) -> None:
    for _ in range(600):
        world.run(1)
        world.is_hung = True
        if world.has_given_up:
            break
    assert world.has_given_up
    assert "10 restarts in 10 minutes: does not answer" in world.machine.cause


def test_time_in_which_nobody_looked_is_nobodys_fault(world: World) -> None:
    world.is_hung = True
    world.advance()
    world.now += 3600
    world.advance()
    world.is_hung = False
    world.run(10)
    assert world.starts == 1
