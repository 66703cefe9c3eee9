"""What the guardrails blocked, on the server's metrics page."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb

from cosmos_triton.guardrail.verdict import Verdict


class BlockCounter:
    """Counts by guardrail and category; what falls under two categories counts in both."""

    def __init__(self) -> None:
        # Kept: a metric whose family is gone cannot be written.
        self._family = pb.MetricFamily(
            name="cosmos_guardrail_blocks",
            description="Requests that a guardrail blocked, by guardrail and category",
            kind=pb.MetricFamily.COUNTER,
        )
        self._metrics: dict[tuple[str, str], Any] = {}

    def count(self, verdict: Verdict) -> None:
        for category in verdict.categories:
            key = verdict.guardrail, category
            if key not in self._metrics:
                self._metrics[key] = self._family.Metric(labels={"guardrail": key[0], "category": key[1]})
            self._metrics[key].increment(1)
