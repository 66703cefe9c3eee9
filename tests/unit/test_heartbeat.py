"""A process's heartbeat: it beats while the process computes, stops with the interpreter, and ends with the parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_triton.runtime.heartbeat import FOLDER_VARIABLE, Beat, Heartbeats
from cosmos_triton.runtime.processes import has_active_thread, is_alive
from cosmos_triton.serving.processes import kill
from cosmos_triton.serving.run_directory import model_repository
from support.server import until

STAGE = "from cosmos_triton.runtime.heartbeat import start_heartbeat; start_heartbeat()\n"
PARENT = """
import subprocess, sys
stage = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(stage.pid, flush=True)
stage.wait()
"""
WORKS = {
    "python": "while True: pass",
    "waits": "import time; time.sleep(600)",
    "native": "import hashlib; data = bytes(10**9)\nwhile True: hashlib.sha256(data)",
}
DEADLOCK = """
from threading import Lock
from cosmos_triton.runtime.heartbeat import at_work

@at_work
def execute(lock):
    lock.acquire()
    lock.acquire()

execute(Lock())
"""
HANGS = "import ctypes; ctypes.PyDLL(None).sleep(600)"


class Stage:
    """A process as the server starts one, below a parent that can be killed."""

    def __init__(self, folder: Path, work: str) -> None:
        environment = os.environ | {FOLDER_VARIABLE: str(folder)}
        command = [sys.executable, "-c", PARENT, STAGE + work]
        self.parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.parent.stdout
        self.pid = int(self.parent.stdout.readline())
        self.heartbeats = Heartbeats(folder)
        until(lambda: self.beat is not None, seconds=30)

    @property
    def beat(self) -> Beat | None:
        return self.heartbeats.last(self.pid)

    def close(self) -> None:
        kill(self.pid)
        self.parent.kill()
        self.parent.communicate()


@pytest.fixture
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    stage = Stage(tmp_path, request.param)
    yield stage
    stage.close()


@pytest.mark.parametrize("stage", WORKS.values(), ids=WORKS, indirect=True)
def test_it_goes_on_while_the_process_works(stage: Stage) -> None:
    for _ in range(3):
        before = stage.beat
        until(lambda before=before: stage.beat != before, seconds=10)  # type: ignore[misc]


@pytest.mark.parametrize("stage", [HANGS], ids=[""], indirect=True)
def test_it_stops_where_the_interpreter_is_locked(stage: Stage) -> None:
    def has_stopped() -> bool:
        before = stage.beat
        time.sleep(1.5)
        return stage.beat == before

    until(has_stopped, seconds=15)


@pytest.mark.parametrize("stage", [DEADLOCK], ids=[""], indirect=True)
def test_it_says_that_the_process_is_at_work_and_threads_tell_that_nothing_happens(stage: Stage) -> None:
    until(lambda: stage.beat and stage.beat.work, seconds=10)
    until(lambda: not has_active_thread(stage.pid), seconds=10)


@pytest.mark.parametrize("stage", [WORKS["waits"]], ids=[""], indirect=True)
def test_process_between_requests_is_not_at_work(stage: Stage) -> None:
    before = stage.beat
    until(lambda: stage.beat != before, seconds=10)
    assert stage.beat
    assert stage.beat.work == 0


@pytest.mark.parametrize("stage", [WORKS["waits"]], ids=[""], indirect=True)
def test_process_ends_with_its_parent(stage: Stage) -> None:
    stage.parent.kill()
    until(lambda: not is_alive(stage.pid), seconds=15)


@pytest.mark.parametrize("model", sorted(model_repository().glob("*/1/model.py")), ids=lambda path: path.parts[-3])
def test_every_model_starts_one(model: Path) -> None:
    text = model.read_text()
    if "class TritonPythonModel(PipelineModel)" not in text:
        assert "        start_heartbeat()\n" in text
        assert "    @at_work\n    def execute(" in text
