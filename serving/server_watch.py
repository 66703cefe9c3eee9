"""Calls of the server that must not hold its supervisor up: each takes up to the timeout of a call, on a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from cosmos_triton.serving.observation import Call, CallState
from cosmos_triton.serving.repository_api import ModelState, NoAnswerError, RefusedError, RepositoryApi

ASK_SECONDS = 0.5  # between two questions


@dataclass(frozen=True, slots=True)
class Answer:
    """asked_at, answered_at: of the same question. states: of every model."""

    asked_at: float = 0.0
    answered_at: float = 0.0
    is_ready: bool = False
    states: Mapping[str, ModelState] = field(default_factory=dict)


class ServerWatch:
    """Asks a server again and again whether it is ready, and for the state of its models.

    last: its last answer.
    """

    def __init__(self, api: RepositoryApi) -> None:
        self._api = api
        self.last = Answer()
        threading.Thread(target=self._ask_for_ever, name="server-watch", daemon=True).start()

    def _ask_for_ever(self) -> None:
        while True:
            self._ask()
            time.sleep(ASK_SECONDS)

    def _ask(self) -> None:
        asked_at = time.monotonic()
        try:
            is_ready, states = self._api.is_ready(), self._api.states()
        except NoAnswerError:
            return
        except RefusedError:  # it stops, or has only just started
            is_ready, states = False, {}
        self.last = Answer(asked_at, time.monotonic(), is_ready, states)


class Reloads:
    """Reloads of models.

    calls: the latest of each.
    """

    def __init__(self, api: RepositoryApi) -> None:
        self._api = api
        self.calls: dict[str, Call] = {}
        self._latest: dict[str, int] = {}

    def start(self, model: str) -> None:
        """Unload and load a model."""
        number = self._latest.get(model, 0) + 1
        self._latest[model], self.calls[model] = number, Call(CallState.RUNNING)
        threading.Thread(target=self._reload, args=(model, number), name=f"reload-{model}", daemon=True).start()

    def _reload(self, model: str, number: int) -> None:
        state, reason = CallState.ENDED, ""
        try:
            self._api.unload(model)
            # Before the unload has ended: once a model is unloaded, the server reports ready without it.
            self._api.load(model)
        except RefusedError as error:
            state, reason = CallState.REFUSED, str(error)
        except NoAnswerError:  # a large model takes longer to load than the timeout of a call
            pass
        if self._latest[model] == number:
            self.calls[model] = Call(state, time.monotonic(), reason)
