from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent

# The fixtures here, so that the lanes of whole pipelines share servers when one pytest runs several.
pytest_plugins = ("support.pipeline_fixtures", "support.skips")

# The networks here are tiny: a second thread costs more in waiting than it brings, most of all on a busy machine.
torch.set_num_threads(1)

# A shell starts what it puts in the background with SIGINT ignored, and the programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test's lane is its folder: `pytest -m unit`. pyproject.toml says what each lane is for."""
    folder = item.path.relative_to(TESTS).parts[0]
    if folder != "support":  # which has tests that a lane's test runs in a process of their own
        item.add_marker(folder)
