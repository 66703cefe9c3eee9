"""SIGTERM, SIGINT and SIGHUP, raised at the next wait: the first asks for a graceful stop, the second for an immediate
one."""

from __future__ import annotations

import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
POLL_SECONDS = 0.05  # within which a signal raises


class Stopped(Exception):
    """A stop signal has arrived."""


class StopSignals:
    """Counts the stop signals of the main thread from its creation on.

    handled: how many have been acted upon; more than these raise Stopped.
    """

    def __init__(self) -> None:
        self.handled = 0
        self._received = 0
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self._count)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self._received += 1

    def sleep(self, seconds: float) -> None:
        """Sleep; raises Stopped as soon as there is a signal that has not been handled."""
        end = time.monotonic() + seconds
        while True:
            if self._received > self.handled:
                raise Stopped
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, POLL_SECONDS))
