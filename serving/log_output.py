"""Standard error as the place for the log of a server: writing to it never holds anybody up, and never fails."""

from __future__ import annotations

import os
import queue
import select
import sys
import threading
import time
from functools import cache

MAX_WAITING = 10_000  # lines; further ones are lost, as those are that cannot be written
FLUSH_SECONDS = 2.0
RETRY_SECONDS = 1.0  # for which an output that takes nothing now is waited for


class LogOutput:
    """Writes lines to a file descriptor, on a thread of its own. Lines that cannot be written, for a full disk or a
    reader that has gone or stopped reading, are lost; how many is said once it can be written again.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(MAX_WAITING)
        self._lost = 0
        self._lock = threading.Lock()
        self._line_is_open = False
        threading.Thread(target=self._write_for_ever, name="log", daemon=True).start()

    def write(self, line: str) -> None:
        """One line, with its end. Returns at once."""
        try:
            self._lines.put_nowait(line.encode(errors="replace"))
        except queue.Full:
            self._count_lost()

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Wait until everything is written, at most for `seconds`."""
        deadline = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _count_lost(self) -> None:
        with self._lock:
            self._lost += 1

    def _write_for_ever(self) -> None:
        while True:
            line = self._lines.get()
            if not self._write(self._notice() + line):
                self._count_lost()
            self._lines.task_done()

    def _notice(self) -> bytes:
        """What goes before the first line after lost ones."""
        if not self._lost:
            return b""
        end = b"\n" if self._line_is_open else b""
        return end + f"{timestamp()} serve: {self._lost} lines of this log were lost\n".encode()

    def _write(self, content: bytes) -> bool:
        """Whether all of it was written. A notice in front of it counts as said once it has been written."""
        lost = self._lost
        try:
            while content:
                content = content[self._write_some(content) :]
        except OSError:
            return False
        with self._lock:
            self._lost -= lost
        self._line_is_open = False
        return True

    def _write_some(self, content: bytes) -> int:
        try:
            written = os.write(self._descriptor, content)
        except BlockingIOError:  # somebody has made it non-blocking
            if not select.select([], [self._descriptor], [], RETRY_SECONDS)[1]:
                raise
            return 0
        self._line_is_open = True
        return written


@cache
def log_output() -> LogOutput:
    """This process's."""
    return LogOutput(sys.__stderr__.fileno() if sys.__stderr__ else 2)


def timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def say(text: str) -> None:
    """Write one line of this process into the server's log."""
    log_output().write(f"{timestamp()} serve: {text}\n")
