"""The heartbeat of a stage's process: how its supervisor tells a process that hangs from one that computes.

A stage may compute for minutes in one `execute`, so it cannot be asked. A thread of its process touches a file instead,
several times a second. The thread needs nothing but the interpreter lock, which whatever computes for long releases.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FOLDER_VARIABLE = "COSMOS_TRITON_HEARTBEATS"  # environment variable that `serve` sets: the folder of the files
BEAT_SECONDS = 0.25

_thread: threading.Thread | None = None


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """The files of one server's processes, each named by its process id. The last beat is the file's change time, so
    that a full file system stops no beat.
    """

    folder: Path

    def file(self, pid: int) -> Path:
        return self.folder / str(pid)

    def last(self, pid: int) -> int | None:
        """Nanoseconds, which change with each beat; None before the first."""
        try:
            return self.file(pid).stat().st_mtime_ns
        except OSError:
            return None

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
    _thread = threading.Thread(target=_beat, args=(file, parent), name="heartbeat", daemon=True)
    _thread.start()


def _beat(file: Path, parent: int) -> None:
    while os.getppid() == parent:
        with suppress(OSError):  # removed with everything else of the server, which is about to end
            os.utime(file)
        time.sleep(BEAT_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
