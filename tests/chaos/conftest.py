"""Servers that are killed, stopped and starved, and the figures of how they took it, which are printed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.figures import Note
from support.held_server import HeldServer
from support.pipeline_fixtures import checkpoints  # noqa: F401

FIGURES: list[tuple[str, dict[str, object]]] = []


@pytest.fixture
def note() -> Note:
    """Keeps the figures of a scenario: seconds, and what was lost or left."""

    def keep(scenario: str, **figures: object) -> None:
        FIGURES.append((scenario, figures))

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("figures")
    for scenario, figures in FIGURES:
        values = ", ".join(
            f"{name.replace('_', ' ')} {value:.1f}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
            for name, value in figures.items()
        )
        terminalreporter.write_line(f"{scenario:48} {values}")


@pytest.fixture(scope="session")
def deployment() -> str:
    return "tiny-video2world"


@pytest.fixture(scope="module")
def server(
    checkpoints: Path,  # noqa: F811
    deployment: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[HeldServer]:
    """One that all tests of a module put through their faults."""
    server = HeldServer(deployment, checkpoints, tmp_path_factory.mktemp(deployment))
    server.start()
    try:
        yield server
    finally:
        server.close()
