"""The supervisor of one server: restarts dead stages, keeps readiness truthful, and drains requests before a stop.

The server itself does none of this. When a stage's process dies, it stays "ready" and fails every request to that
stage; when it is told to stop, requests between two stages fail.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Set
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from cosmos_triton.runtime.errors import CosmosError
from cosmos_triton.serving.addresses import StartError
from cosmos_triton.serving.repository_api import ModelState, NoAnswerError, RefusedError
from cosmos_triton.serving.stop_signals import StopSignals
from cosmos_triton.serving.triton_server import TritonServer

POLL_SECONDS = 0.2  # between two polls of the stages' processes
HEALTH_SECONDS = 2  # between two health checks of the server
MAX_MISSED_CHECKS = 2  # in a row, each after a timeout of five seconds, before the server counts as hung
LOAD_SECONDS, LOAD_ATTEMPTS = 900, 2
MAX_RESTARTS, RESTART_WINDOW = 10, 600  # seconds; with more restarts than that in the window, `serve` gives up
START_ATTEMPTS = 3
MAX_BACKOFF = 8  # seconds before a restart; the pause doubles with each restart in the window
DRAIN_SECONDS, DRAIN_STEP = 600, 0.02  # for running pipelines: enough for several of the largest model
LOST_SECONDS = 3  # a process that was told to end is seen dead for some moments before its model is unavailable
FINALIZE_SECONDS = 30  # for the other stages, which are idle by then


class GaveUpError(CosmosError):
    """The server needed too many restarts."""


class _NeedsRestartError(Exception):
    """Reloading stages is not enough; the message is the cause."""


class Supervisor:
    """Watches one ready server.

    Args:
        entry_models: the models that clients call; unloading them stops new work.
        fatal_models: models whose death leaves requests that never end unless the server is restarted.
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
        self._missed_checks = 0
        self._next_health_check = 0.0

    def watch(self) -> NoReturn:
        """Poll, reload dead stages and restart a dead server, until a signal raises Stopped.

        Raises:
            GaveUpError: too many restarts.
        """
        while True:
            self._stop.sleep(POLL_SECONDS)
            try:
                self._poll()
            except (_NeedsRestartError, NoAnswerError, RefusedError) as cause:
                self._restart(str(cause))

    def _poll(self) -> None:
        if (code := self._server.exit_code) is not None:
            raise _NeedsRestartError(f"tritonserver ended with code {code}")
        if dead := self._server.dead_models():
            self._reload(dead)
        now = time.monotonic()
        if now >= self._next_health_check:
            self._missed_checks = 0 if self._server.api.is_live() else self._missed_checks + 1
            self._next_health_check = now + HEALTH_SECONDS
        if self._missed_checks >= MAX_MISSED_CHECKS:
            raise _NeedsRestartError("tritonserver does not answer")

    def _reload(self, dead: Set[str]) -> None:
        say(f"died: {', '.join(sorted(dead))}")
        if dead & self._fatal_models:
            raise _NeedsRestartError("its requests would never end")
        # At the same time: between two reloads the server would be ready, with a dead stage still to be reloaded.
        with ThreadPoolExecutor(len(dead)) as pool:
            list(pool.map(self._replace, dead))
        self._server.find_stubs()

    def _replace(self, model: str) -> None:
        # Load before the unload has ended: once a model is unloaded, the server reports ready without it.
        self._server.retire(model)
        self._server.api.unload(model)
        self._load(model)
        say(f"{model}: ready again")

    def _load(self, model: str) -> None:
        reason = ""
        for _ in range(LOAD_ATTEMPTS):
            try:
                self._server.api.load(model)
                return
            except RefusedError as error:
                reason = str(error)
            except NoAnswerError:  # a large model takes longer to load than the timeout of a call
                state = self._wait_for_load(model)
                if state.name == "READY":
                    return
                reason = state.reason or state.name
        raise _NeedsRestartError(f"{model} could not be loaded: {reason}")

    def _wait_for_load(self, model: str) -> ModelState:
        deadline = time.monotonic() + LOAD_SECONDS
        while (state := self._server.api.states()[model]).name == "LOADING" and time.monotonic() < deadline:
            self._stop.sleep(POLL_SECONDS)
        return state

    def _restart(self, cause: str) -> None:
        for _ in range(START_ATTEMPTS):
            say(f"restarting the server: {cause}")
            self._server.kill()
            self._stop.sleep(self._backoff(cause))
            self._missed_checks = 0
            try:
                self._server.start(self._stop)
            except StartError as error:
                cause = str(error)
                continue
            say("the server is ready again")
            return
        raise GaveUpError(f"gave up after {START_ATTEMPTS} attempts to start the server: {cause}")

    def _backoff(self, cause: str) -> int:
        """Seconds before the next restart: 0 for the first in the window, then 1, 3, 7 and at most MAX_BACKOFF."""
        now = time.monotonic()
        self._restarts = [moment for moment in self._restarts if moment > now - RESTART_WINDOW]
        if len(self._restarts) >= MAX_RESTARTS:
            raise GaveUpError(f"gave up after {MAX_RESTARTS} restarts in {RESTART_WINDOW // 60} minutes: {cause}")
        self._restarts.append(now)
        return min(2 ** (len(self._restarts) - 1) - 1, MAX_BACKOFF)

    def drain(self) -> bool:
        """Refuse new requests, finish the running ones, and stop the server.

        Returns:
            Whether all of them finished.

        Raises:
            Stopped: another signal came.
        """
        if not self._server.is_running:
            return True
        say("stopping: finishing what is under way")
        try:
            finished = self._finish(self._entry_models, seconds=DRAIN_SECONDS)
            # A server that is told to stop waits for idle client connections, and does not wait for its stages.
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
    """Write one line of this process into the server's log."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} serve: {text}", file=sys.stderr, flush=True)
