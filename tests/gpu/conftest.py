from __future__ import annotations

from pathlib import Path

import pytest
import torch

LANE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.path.is_relative_to(LANE):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
