"""The models' own metrics on the server's metrics page: docs/metrics.md.

Every series is labelled with the process that counts it. The server lets two processes write one series, but removes it
for both when one of them ends, and the other then writes to memory that has been freed. What a process that died has
counted stays on the page.

Whatever is written is a message to the server that is waited for, so nothing is written that says nothing.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import triton_python_backend_utils as pb

from cosmos_triton.guardrail.verdict import Verdict

# Upper bounds of the histograms' buckets, in seconds: from a tiny deployment's stages to a clip of the largest one.
BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600]


class Family:
    """A family of metrics of one process, and its metrics by their labels. For any thread."""

    def __init__(self, name: str, description: str, kind: Any, **options: Any) -> None:
        self._arguments = {"name": name, "description": description, "kind": kind}
        self._options = options
        self._family: Any = None  # kept, since a metric cannot be written once its family has been garbage-collected
        self._metrics: dict[frozenset[tuple[str, str]], Any] = {}
        self._lock = threading.Lock()

    def of(self, **labels: str) -> Any:
        """The metric with these labels."""
        key = frozenset(labels.items())
        with self._lock:
            if key not in self._metrics:
                self._family = self._family or pb.MetricFamily(**self._arguments)
                own = labels | {"process": str(os.getpid())}
                self._metrics[key] = self._family.Metric(labels=own, **self._options)
            return self._metrics[key]


class RequestMetrics:
    """Requests by model and by the code they were answered with, and their durations in seconds."""

    def __init__(self) -> None:
        counter, histogram = pb.MetricFamily.COUNTER, pb.MetricFamily.HISTOGRAM
        self._requests = Family("cosmos_requests", "Requests answered, by model and code", counter)
        self._seconds = Family(
            "cosmos_request_seconds", "Seconds of work on a request, by model and code", histogram, buckets=BUCKETS
        )
        self._waited = Family(
            "cosmos_request_wait_seconds", "Seconds that a request waited before, by model", histogram, buckets=BUCKETS
        )

    def count(self, model: str, code: str, seconds: float, waited: float | None = None) -> None:
        """A request was answered.

        Args:
            code: one of `errors.CODES`.
            seconds: of work on it.
            waited: seconds before that; None where it is not known.
        """
        self._requests.of(model=model, code=code).increment(1)
        self._seconds.of(model=model, code=code).observe(seconds)
        if waited is not None:
            self._waited.of(model=model).observe(waited)


class GuardrailBlocks:
    """Counter of blocked requests by guardrail and category. A verdict with two categories counts in both."""

    def __init__(self) -> None:
        self._blocks = Family(
            "cosmos_guardrail_blocks",
            "Requests that a guardrail blocked, by guardrail and category",
            pb.MetricFamily.COUNTER,
        )

    def count(self, verdict: Verdict) -> None:
        for category in verdict.categories:
            self._blocks.of(guardrail=verdict.guardrail, category=category).increment(1)
