"""SIGTERM and its like, seen at the next wait: the first asks for an orderly stop, the second for one at once."""

from __future__ import annotations

import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STEP = 0.05  # seconds within which a signal is seen


class Stopped(Exception):
    """A signal to stop has come."""


class StopSignals:
    """Counts the signals from its creation on, in the main thread.

    heeded: how many have been acted upon; any more than these raise Stopped.
    """

    def __init__(self) -> None:
        self.heeded = 0
        self._received = 0
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has SIGHUP ignored
                signal.signal(number, self._count)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self._received += 1

    def sleep(self, seconds: float) -> None:
        """Sleep; raises Stopped as soon as there is a signal that was not heeded."""
        end = time.monotonic() + seconds
        while True:
            if self._received > self.heeded:
                raise Stopped
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, STEP))
