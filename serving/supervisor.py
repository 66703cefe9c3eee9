"""Keeps a server's readiness true and its stages alive, and lets it finish its work before it ends.

The server itself does neither. When the process of a stage dies it stays "ready" and fails every request to that
stage; when it is told to stop, requests between two stages fail.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Set
from typing import NoReturn

from cosmos_triton.runtime.errors import CosmosError
from cosmos_triton.serving.repository_api import ModelState, NoAnswerError, RefusedError
from cosmos_triton.serving.stop_signals import StopSignals
from cosmos_triton.serving.triton_server import StartError, TritonServer

WATCH_SECONDS = 0.2  # between two looks at the stages' processes
LIVE_SECONDS = 2  # between two questions whether the server answers
SILENCES = 2  # unanswered ones in a row, of five seconds each, before the server is taken for hung
LOAD_SECONDS, LOAD_ATTEMPTS = 900, 2
RESTARTS, RESTART_WINDOW = 10, 600  # more restarts within as many seconds, and it is left to whoever runs this
START_ATTEMPTS = 3
LONGEST_PAUSE = 8  # seconds before a restart, doubled from one restart in the window to the next
DRAIN_SECONDS, DRAIN_STEP = 600, 0.02  # for pipelines under way: several of the largest model's
LOST_SECONDS = 3  # a process that was told to end is seen as dead for some moments before its model is
FINALIZE_SECONDS = 30  # for the other stages, which have nothing left to do


class GaveUpError(CosmosError):
    """The server needed more restarts than can help."""


class _NeedsRestartError(Exception):
    """Why unloading and loading stages will not do."""


class Supervisor:
    """Watches one ready server.

    Args:
        entry_models: what clients call, and what alone must stop to stop new work.
        fatal_models: those whose death leaves requests that never end, unless the server is restarted: models that
            answer from a thread of their own, for whose answer the server waits, and decoupled ones, since an error
            behind other answers does not reach a pipeline.
    """

    def __init__(
        self,
        server: TritonServer,
        stop: StopSignals,
        *,
        models: Collection[str],
        entry_models: Collection[str],
        fatal_models: Set[str],
    ) -> None:
        self._server = server
        self._stop = stop
        self._models = models
        self._entry_models = entry_models
        self._fatal_models = fatal_models
        self._restarts: list[float] = []
        self._silences = 0
        self._next_live_question = 0.0

    def watch(self) -> NoReturn:
        """Put right what goes wrong, until a signal raises Stopped.

        Raises:
            GaveUpError: too many restarts.
        """
        while True:
            self._stop.sleep(WATCH_SECONDS)
            try:
                self._look()
            except (_NeedsRestartError, NoAnswerError, RefusedError) as cause:
                self._restart(str(cause))

    def _look(self) -> None:
        if (code := self._server.exit_code) is not None:
            raise _NeedsRestartError(f"tritonserver ended with code {code}")
        if dead := self._server.dead_models():
            self._revive(dead)
        now = time.monotonic()
        if now >= self._next_live_question:
            self._silences = 0 if self._server.api.is_live() else self._silences + 1
            self._next_live_question = now + LIVE_SECONDS
        if self._silences >= SILENCES:
            raise _NeedsRestartError("tritonserver does not answer")

    def _revive(self, dead: Set[str]) -> None:
        say(f"died: {', '.join(sorted(dead))}")
        if dead & self._fatal_models:
            raise _NeedsRestartError("the requests that it held would never end")
        for model in dead:
            # The load follows the unload at once, before it has ended: of a model whose unload has ended the server
            # says that it is ready without it.
            self._server.retire(model)
            self._server.api.unload(model)
            self._load(model)
            say(f"{model}: ready again")
        self._server.find_stubs()

    def _load(self, model: str) -> None:
        reason = ""
        for _ in range(LOAD_ATTEMPTS):
            try:
                self._server.api.load(model)
                return
            except RefusedError as error:
                reason = str(error)
            except NoAnswerError:  # a large model takes longer than an answer may
                state = self._wait_for_load(model)
                if state.name == "READY":
                    return
                reason = state.reason or state.name
        raise _NeedsRestartError(f"{model} could not be loaded: {reason}")

    def _wait_for_load(self, model: str) -> ModelState:
        deadline = time.monotonic() + LOAD_SECONDS
        while (state := self._server.api.states()[model]).name == "LOADING" and time.monotonic() < deadline:
            self._stop.sleep(WATCH_SECONDS)
        return state

    def _restart(self, cause: str) -> None:
        for _ in range(START_ATTEMPTS):
            say(f"restarting the server: {cause}")
            self._server.kill()
            self._stop.sleep(self._pause_before_restart(cause))
            self._silences = 0
            try:
                self._server.start(self._stop)
            except StartError as error:
                cause = str(error)
                continue
            say("the server is ready again")
            return
        raise GaveUpError(f"gave up after {START_ATTEMPTS} attempts to start the server: {cause}")

    def _pause_before_restart(self, cause: str) -> int:
        """Seconds: none for the first restart in a long time, more when one follows the other."""
        now = time.monotonic()
        self._restarts = [moment for moment in self._restarts if moment > now - RESTART_WINDOW]
        if len(self._restarts) >= RESTARTS:
            raise GaveUpError(f"gave up after {RESTARTS} restarts in {RESTART_WINDOW // 60} minutes: {cause}")
        self._restarts.append(now)
        return min(2 ** (len(self._restarts) - 1) - 1, LONGEST_PAUSE)

    def drain(self) -> bool:
        """Refuse new work, finish what is under way, and end the server.

        Returns:
            Whether everything was finished.

        Raises:
            Stopped: another signal came.
        """
        if not self._server.is_running:
            return True
        say("stopping: finishing what is under way")
        try:
            finished = self._finish(self._entry_models, seconds=DRAIN_SECONDS)
            # The server's own stop gives its time to clients that keep an idle connection open, and none to stages.
            finished = finished and self._finish(self._models, seconds=FINALIZE_SECONDS)
        except (NoAnswerError, RefusedError):
            finished = False
        self._server.stop(self._stop)
        return finished

    def _finish(self, models: Collection[str], *, seconds: float) -> bool:
        for model in models:
            self._server.api.unload(model)
        end = deadline = time.monotonic() + seconds
        while time.monotonic() < end:
            states = self._server.api.states()
            ended = {model for model, state in states.items() if state.name == "UNAVAILABLE"}
            if ended.issuperset(models):
                return True
            lost = (self._server.dead_models() & self._fatal_models) - ended
            end = min(end, time.monotonic() + LOST_SECONDS) if lost else deadline
            self._stop.sleep(DRAIN_STEP)
        return False


def say(text: str) -> None:
    """A line of this process, in the log of the server."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} serve: {text}", file=sys.stderr, flush=True)
