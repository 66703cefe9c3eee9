"""The pipeline's metrics on the server's metrics page."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb

from cosmos_triton.guardrail.verdict import Verdict


class GuardrailBlocks:
    """Counter of blocked requests by guardrail and category. A verdict with two categories counts in both."""

    def __init__(self) -> None:
        # A metric cannot be incremented once its family has been garbage-collected.
        self._family = pb.MetricFamily(
            name="cosmos_guardrail_blocks",
            description="Requests that a guardrail blocked, by guardrail and category",
            kind=pb.MetricFamily.COUNTER,
        )
        self._counters: dict[tuple[str, str], Any] = {}

    def count(self, verdict: Verdict) -> None:
        for category in verdict.categories:
            key = verdict.guardrail, category
            if key not in self._counters:
                labels = {"guardrail": verdict.guardrail, "category": category}
                self._counters[key] = self._family.Metric(labels=labels)
            self._counters[key].increment(1)
