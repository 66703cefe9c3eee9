"""`cosmos-triton` with the given command line, on models that can be held at work.

    python serve_held.py FOLDER serve --deployment tiny ...

Each stage's model.py is the delivered one; before its `execute` it writes its process id into FOLDER/at_work/STAGE, and
waits for as long as there is a file FOLDER/hold/STAGE. What the file
says may have it hang instead: LOCKED with the interpreter locked, WAITING at work with the interpreter free.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from unittest import mock

from cosmos_triton.cli.main import main
from cosmos_triton.runtime.stages import STAGES
from cosmos_triton.serving.run_directory import model_repository

LOCKED, WAITING = "locked", "waiting"
MODEL = """
import ctypes
import importlib.util
import os
import time
from pathlib import Path

from cosmos_triton.runtime.heartbeat import at_work

spec = importlib.util.spec_from_file_location("delivered", {source!r})
delivered = importlib.util.module_from_spec(spec)
spec.loader.exec_module(delivered)


class TritonPythonModel(delivered.TritonPythonModel):
    def execute(self, requests):
        Path({folder!r}, "at_work", {stage!r}).write_text(str(os.getpid()))
        hold = Path({folder!r}, "hold", {stage!r})
        how = hold.read_text() if hold.exists() else ""
        if how == {locked!r}:
            ctypes.PyDLL(None).sleep(600)
        elif how == {waiting!r}:
            at_work(time.sleep)(600)
        while hold.exists():
            time.sleep(0.02)
        return super().execute(requests)
"""


def held(folder: Path) -> Path:
    """The model repository with every stage so changed."""
    repository = folder / "repository"
    shutil.copytree(model_repository(), repository, ignore=shutil.ignore_patterns("__pycache__", "*.py[co]"))
    for name in ("at_work", "hold"):
        (folder / name).mkdir()
    for stage in STAGES:
        source = model_repository() / stage / "1" / "model.py"
        text = MODEL.format(source=str(source), folder=str(folder), stage=stage, locked=LOCKED, waiting=WAITING)
        (repository / stage / "1" / "model.py").write_text(text)
    return repository


if __name__ == "__main__":
    repository = held(Path(sys.argv[1]))
    with mock.patch("cosmos_triton.serving.serve.model_repository", return_value=repository):
        sys.exit(main(sys.argv[2:]))
