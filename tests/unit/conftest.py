from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from support import fake_triton

# Only the server's stage processes have this module.
sys.modules["triton_python_backend_utils"] = fake_triton


@pytest.fixture
def triton() -> Iterator[object]:
    """The fake, with an empty log and metrics page."""
    fake_triton.clear()
    yield fake_triton
