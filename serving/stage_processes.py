"""Which processes are a server's stages."""

from __future__ import annotations

from pathlib import Path

from cosmos_triton.runtime.heartbeat import Heartbeats
from cosmos_triton.runtime.processes import has_active_thread, process_status
from cosmos_triton.serving.observation import StageProcess
from cosmos_triton.serving.processes import arguments_of, children_of


class StageProcesses:
    """Finds the stages' processes among the children of a server.

    Args:
        models: the folder of the models, as the server was given it.
    """

    def __init__(self, models: Path, heartbeats: Heartbeats) -> None:
        self._models = models
        self._heartbeats = heartbeats
        self._model_of: dict[int, str] = {}

    def scan(self, server: int) -> dict[str, tuple[StageProcess, ...]]:
        """The living processes of each model."""
        found: dict[str, tuple[StageProcess, ...]] = {}
        known = self._model_of
        self._model_of = {}
        for pid in children_of(server):
            # Arguments are read until they name a model: a child that has only just been made has its parent's.
            model = known.pop(pid, None) or self._read_model(pid)
            status = process_status(pid)
            if model is None or status is None:
                continue
            self._model_of[pid] = model
            beat = self._heartbeats.last(pid)
            is_active = not (beat and beat.work) or has_active_thread(pid)
            found[model] = (*found.get(model, ()), StageProcess(status, beat, is_active))
        for pid in known:
            self._heartbeats.forget(pid)
        return found

    def _read_model(self, pid: int) -> str | None:
        """The model of a process, from the path of its model.py among the arguments."""
        paths = (Path(argument) for argument in arguments_of(pid))
        return next((path.relative_to(self._models).parts[0] for path in paths if self._models in path.parents), None)
