from __future__ import annotations

import sys
from types import ModuleType

import pytest

from support import fake_triton

# Only the server's stage processes have this module.
sys.modules["triton_python_backend_utils"] = fake_triton


@pytest.fixture
def triton() -> ModuleType:
    """The fake, with an empty log and metrics page."""
    fake_triton.clear()
    return fake_triton
