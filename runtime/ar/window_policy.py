"""How many tokens a step should try: the speculation window that earns the most tokens a second."""

from __future__ import annotations

from dataclasses import dataclass

MAX_WINDOW = 64  # the longest window of a step; what is longer is a prefill, and has work enough for one pass
SMOOTHING = 0.05  # weight of the newest observation
CURIOSITY = 1.002  # growth of an estimate for each step in which its window is not tried


@dataclass(slots=True)
class Estimate:
    accepted: float  # tokens a clip gains from one step
    seconds: float | None = None  # a step takes


class WindowPolicy:
    """Chooses among `windows` by what was seen, and looks again at the others now and then.

    Estimates start at the best that can be, so every window is tried; from then on the one with the most accepted
    tokens a second is used. Acceptance changes along a clip: an estimate that is not used grows slowly, until its
    window is tried again. Any choice gives the same tokens; only the speed differs.
    """

    def __init__(self, windows: tuple[int, ...]) -> None:
        self._estimates = {window: Estimate(accepted=float(window)) for window in windows}

    @property
    def window(self) -> int:
        def rate(window: int) -> float:
            estimate = self._estimates[window]
            return float("inf") if estimate.seconds is None else estimate.accepted / estimate.seconds

        return max(self._estimates, key=rate)

    def observe(self, window: int, accepted: float, seconds: float) -> None:
        """A step of `window` added `accepted` tokens to each clip on average, and took `seconds`."""
        for other, estimate in self._estimates.items():
            if other != window:
                estimate.accepted = min(estimate.accepted * CURIOSITY, float(other))
        estimate = self._estimates[window]
        if estimate.seconds is None:
            estimate.seconds = seconds
        estimate.accepted += SMOOTHING * (accepted - estimate.accepted)
        estimate.seconds += SMOOTHING * (seconds - estimate.seconds)
