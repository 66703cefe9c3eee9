"""The heartbeat of a stage's process: how its supervisor tells a process that hangs from one that computes.

A stage may compute for minutes in one `execute`, so it cannot be asked. A thread of its process touches a file instead,
several times a second. The thread needs nothing but the interpreter lock, which whatever computes for long releases. It
also tells whether the process is at work, which must then show in its threads.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "COSMOS_TRITON_HEARTBEATS"  # environment variable that `serve` sets: the folder of the files
BEAT_SECONDS = 0.25

_thread: threading.Thread | None = None
_work = 0  # as in Beat


@dataclass(frozen=True, slots=True)
class Beat:
    """at: when it was, in nanoseconds. work: a number of the current `execute`; 0 between them."""

    at: int
    work: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """The files of one server's processes, each named by its process id. A beat is in the times of the file, `at` that
    of its last change and `work` that of its last access, so that a full file system stops no beat.
    """

    folder: Path

    def file(self, pid: int) -> Path:
        return self.folder / str(pid)

    def last(self, pid: int) -> Beat | None:
        """None before the first."""
        try:
            status = self.file(pid).stat()
        except OSError:
            return None
        return Beat(status.st_mtime_ns, status.st_atime_ns)

    def forget(self, pid: int) -> None:
        """Remove the file of a process that has ended."""
        self.file(pid).unlink(missing_ok=True)


def start_heartbeat() -> None:
    """Called by every model when it is initialised; without a supervisor it does nothing.

    The process ends itself when its parent, the server, has ended: a stub that computes would not notice.
    """
    global _thread
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None or _thread is not None:
        return
    file, parent = Heartbeats(Path(folder)).file(os.getpid()), os.getppid()
    with suppress(OSError):
        file.touch(mode=0o600)
        os.utime(file, ns=(0, time.time_ns()))
    _thread = threading.Thread(target=_beat, args=(file, parent), name="heartbeat", daemon=True)
    _thread.start()


def at_work(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of `execute` where it returns when the work is done: the heartbeat says so meanwhile."""

    @wraps(execute)
    def execute_at_work(*arguments: Any) -> Any:
        global _work
        _work = time.monotonic_ns()
        try:
            return execute(*arguments)
        finally:
            _work = 0

    return execute_at_work


def _beat(file: Path, parent: int) -> None:
    while os.getppid() == parent:
        with suppress(OSError):  # removed with everything else of the server, which is about to end
            os.utime(file, ns=(_work, time.time_ns()))
        time.sleep(BEAT_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
