"""The supervisor of one server: keeps it and its stages up, keeps readiness truthful, and drains requests at the end.

The server itself does none of this. When a stage's process dies, it stays "ready" and fails every request to that
stage; when it is told to stop, requests between two stages fail. What is decided is in server_machine.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from cosmos_triton.runtime.errors import CosmosError
from cosmos_triton.serving.companions import Companion, CompanionFailedError
from cosmos_triton.serving.log_output import say
from cosmos_triton.serving.observation import Action, GiveUp, Kill, Observation, Ready, Reload, Say, StartServer
from cosmos_triton.serving.processes import kill
from cosmos_triton.serving.repository_api import NoAnswerError, RefusedError
from cosmos_triton.serving.server_machine import ServerMachine, ServerPhase
from cosmos_triton.serving.server_watch import Reloads, ServerWatch
from cosmos_triton.serving.stage_machine import StageMachine
from cosmos_triton.serving.stop_signals import StopSignals
from cosmos_triton.serving.triton_server import TritonServer

POLL_SECONDS = 0.2  # between two looks at the processes
DRAIN_SECONDS = 600  # for running pipelines: enough for several of the largest model
LOST_SECONDS = 3  # a process that was told to end is seen dead for some moments before its model is unavailable
LOG_SECONDS = 0.5  # for the last lines of a server that has ended


class GaveUpError(CosmosError):
    """The server could not be started, or not be kept running."""


class Supervisor:
    """Starts one server and watches it.

    Args:
        companions: processes beside the server.
        entry_models: the models that clients call; unloading them stops new work.
        on_ready: called when the server has become ready for the first time.
    """

    def __init__(
        self,
        server: TritonServer,
        stop: StopSignals,
        *,
        stages: Collection[StageMachine],
        companions: Sequence[Companion],
        entry_models: Collection[str],
        on_ready: Callable[[], None],
    ) -> None:
        self._server = server
        self._stop = stop
        self._companions = companions
        self._entry_models = entry_models
        self._on_ready: Callable[[], None] | None = on_ready
        self._machine = ServerMachine(stages)
        self._watch = ServerWatch(server.api)
        self._reloads = Reloads(server.api)
        self._started_at = 0.0

    def run(self) -> NoReturn:
        """Start the server and keep it running, until a signal raises Stopped.

        Raises:
            GaveUpError: nothing helps.
        """
        while True:
            self._look_after_companions()
            for action in self._machine.step(self._observe()):
                self._act(action)
            self._stop.sleep(POLL_SECONDS)

    def _look_after_companions(self) -> None:
        try:
            for companion in self._companions:
                companion.look()
        except CompanionFailedError as error:
            raise GaveUpError(str(error)) from None

    def _observe(self) -> Observation:
        """What the server says is from before its processes are looked at: a stage that it calls ready has them."""
        answer, log, exit_code = self._watch.last, self._server.log, self._server.exit_code
        has_answered = answer.asked_at > self._started_at
        if exit_code is not None and log:
            log.join(LOG_SECONDS)
        return Observation(
            now=time.monotonic(),
            server=self._server.status,
            exit_code=exit_code,
            processes=self._server.stages(),
            states=answer.states if has_answered or log is None else dict(log.states),
            states_at=answer.asked_at,
            answered_at=answer.answered_at,
            is_ready=answer.is_ready and has_answered,
            failures=dict(log.failures) if log else {},
            last_error=log.last_error if log else "",
            calls=dict(self._reloads.calls),
        )

    def _act(self, action: Action) -> None:
        match action:
            case Say(text):
                say(text)
            case Kill(pids):
                for pid in pids:
                    kill(pid)
            case Reload(model):
                self._reloads.start(model)
            case StartServer():
                self._started_at = time.monotonic()
                self._server.start()
            case Ready():
                if self._on_ready:
                    self._on_ready()
                self._on_ready = None
            case GiveUp(cause):
                raise GaveUpError(cause)
            case _:
                self._server.kill()

    def drain(self) -> bool:
        """Refuse new requests, finish the running ones, and stop the server.

        Returns:
            Whether all of them finished.

        Raises:
            Stopped: another signal came.
        """
        if self._machine.phase is not ServerPhase.SERVING or not self._server.is_running:
            return True
        say("stopping: finishing what is under way")
        try:
            finished = self._finish(self._entry_models)
        except (NoAnswerError, RefusedError):
            finished = False
        # The other stages have nothing to do and nothing to save: they are ended with the server.
        self._server.stop(self._stop)
        return finished

    def _finish(self, models: Collection[str]) -> bool:
        """Unload models after their running requests. Stages that hang meanwhile are ended, so that requests fail."""
        for model in models:
            self._server.api.unload(model)
        end = deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < end:
            self._look_after_companions()
            seen = self._observe()
            for pid in self._machine.hung(seen):
                kill(pid)
            states = self._server.api.states()
            ended = {model for model, state in states.items() if state.name == "UNAVAILABLE"}
            if ended.issuperset(models):
                return True
            lost = self._machine.lost(seen) - ended
            end = min(end, time.monotonic() + LOST_SECONDS) if lost else deadline
            self._stop.sleep(POLL_SECONDS / 4)
        return False
