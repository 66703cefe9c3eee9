"""The AR engine's statistics on the server's metrics page."""

from __future__ import annotations

import triton_python_backend_utils as pb

from cosmos_triton.runtime.ar.engine import EngineStats


class ARMetrics:
    """Gauges and counters `cosmos_ar_<field of EngineStats>`."""

    GAUGES = ("waiting", "running")
    COUNTERS = ("finished", "cancelled", "failed", "tokens", "steps", "slot_steps", "step_seconds")

    def __init__(self) -> None:
        # Families must be kept: a metric whose family was collected cannot be written.
        self._families = {
            name: pb.MetricFamily(name=f"cosmos_ar_{name}", description=f"ar_sampler: {name}", kind=kind)
            for names, kind in ((self.GAUGES, pb.MetricFamily.GAUGE), (self.COUNTERS, pb.MetricFamily.COUNTER))
            for name in names
        }
        self._metrics = {name: family.Metric(labels={}) for name, family in self._families.items()}
        self._last = EngineStats()

    def update(self, stats: EngineStats) -> None:
        """Write what has changed: each write is a message to the server that is waited for."""
        for name in (*self.GAUGES, *self.COUNTERS):
            value, last = getattr(stats, name), getattr(self._last, name)
            if value == last:
                continue
            if name in self.GAUGES:
                self._metrics[name].set(value)
            else:
                self._metrics[name].increment(value - last)
        self._last = stats
