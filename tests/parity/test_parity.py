"""Every case folder of the parity set, by family.

The set is tests/parity/cases, or the folder that the variable PARITY_DIR names: other configurations and seeds
of the same families. A folder whose family no check knows fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from parity.case import Case
from parity.families import FAMILIES

PARITY_DIR = Path(os.environ.get("PARITY_DIR", Path(__file__).parent / "cases"))
CASES = sorted(folder for folder in PARITY_DIR.iterdir() if folder.is_dir())


def test_the_parity_set_is_not_empty() -> None:
    assert CASES, f"no case folder in {PARITY_DIR}"


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_outputs_equal_the_reference(folder: Path) -> None:
    case = Case(folder)
    check: Callable[[Case], None] | None = FAMILIES.get(case.config["family"])
    assert check is not None, f"{folder}: unknown family {case.config['family']!r}, known: {sorted(FAMILIES)}"
    with torch.inference_mode():
        check(case)
    case.finish()
