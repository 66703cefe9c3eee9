"""The AR engine's statistics on the metrics page: the page has the latest, and only changes are written."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from cosmos_triton.pipeline.ar_metrics import ARMetrics
from cosmos_triton.runtime.ar.engine import EngineStats
from support.fake_triton import Metric, counted


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch, triton: object) -> list[float]:
    """What is written, to any metric."""
    written: list[float] = []

    def increment(self: Metric, by: float) -> None:
        written.append(by)
        self.value += by

    def set(self: Metric, value: float) -> None:
        written.append(value)
        self.value = value

    monkeypatch.setattr(Metric, "increment", increment)
    monkeypatch.setattr(Metric, "set", set, raising=False)
    return written


def page() -> dict[str, float]:
    return {field.name: counted(f"cosmos_ar_{field.name}")[0].value for field in fields(EngineStats)}


def test_the_page_has_the_latest_statistics(writes: list[float]) -> None:
    metrics, stats = ARMetrics(), EngineStats()
    for number in range(1, 4):
        for field in fields(EngineStats):
            stats = replace(stats, **{field.name: getattr(stats, field.name) + number})
            metrics.update(stats)
            assert page() == {name: getattr(stats, name) for name in page()}
    stats = replace(stats, running=0, waiting=1)
    metrics.update(stats)
    assert (page()["running"], page()["waiting"]) == (0, 1)


def test_only_changes_are_written(writes: list[float]) -> None:
    metrics = ARMetrics()
    for stats in (EngineStats(), EngineStats(), EngineStats(running=2, tokens=7), EngineStats(running=2, tokens=7)):
        metrics.update(stats)
    assert writes == [2, 7]
