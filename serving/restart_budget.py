"""How often something may be restarted, and how soon."""

from __future__ import annotations

MAX_RESTARTS, WINDOW_SECONDS = 10, 600
MAX_BACKOFF = 8  # seconds


class RestartBudget:
    """Counts the restarts of one thing."""

    def __init__(self) -> None:
        self._restarts: list[float] = []

    def next(self, now: float) -> float | None:
        """Seconds to wait before the next restart: 0 for the first in the window, then 1, 3, 7 and at most MAX_BACKOFF.
        None where there have been too many.
        """
        self._restarts = [moment for moment in self._restarts if moment > now - WINDOW_SECONDS]
        if len(self._restarts) >= MAX_RESTARTS:
            return None
        self._restarts.append(now)
        return float(min(2 ** (len(self._restarts) - 1) - 1, MAX_BACKOFF))
