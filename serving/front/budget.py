"""The bytes of all requests that are in flight, counted against one bound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cosmos_triton.runtime.media.limits import MIB
from cosmos_triton.serving.front.errors import overloaded
from cosmos_triton.serving.front.limits import IN_FLIGHT_BYTES


class Budget:
    """used: bytes of all shares."""

    def __init__(self, limit: int = IN_FLIGHT_BYTES) -> None:
        self.limit = limit
        self.used = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """The share of one request, which is given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back(share.bytes)


class Share:
    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.bytes = 0

    def take(self, count: int) -> None:
        """Count bytes that have arrived.

        Raises:
            Refusal: UNAVAILABLE, with more than the bound.
        """
        if self._budget.used + count > self._budget.limit:
            raise overloaded("requests in flight", f"{self._budget.used + count} bytes", _at_most(self._budget.limit))
        self.hold(count)

    def give_back(self, count: int) -> None:
        self._budget.used -= count
        self.bytes -= count

    def hold(self, count: int) -> None:
        """Count bytes of an answer: work that is done is not refused."""
        self._budget.used += count
        self.bytes += count


def _at_most(count: int) -> str:
    return f"at most {count} bytes ({count // MIB} MiB); retry later"
