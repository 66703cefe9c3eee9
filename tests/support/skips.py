"""A pytest plugin: a test is skipped for want of a GPU, and for nothing else. Any other skip is a failure.

A skipped test looks like a passed one: with a package missing, or an empty list of parameters, nothing is tested.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _without_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _without_skip((yield))  # of a module that skips itself


def _without_skip(report: Report) -> Report:
    is_expected_failure = hasattr(report, "wasxfail")
    if report.outcome == "skipped" and not is_expected_failure and isinstance(report.longrepr, tuple):
        _, _, reason = report.longrepr
        if "GPU" not in reason:
            report.outcome = "failed"
            report.longrepr = f"{report.nodeid}: {reason}; accepted: a skip where a GPU is missing, which names it"
    return report
