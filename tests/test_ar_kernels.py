"""The GPU's kernels where there is no GPU: interpreted, and compiled for GPUs that are elsewhere.

Each in a process of its own: triton reads once, when it is imported, whether it is to interpret.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
SHARED_LIMITS = {89: 99 * 1024, 90: 227 * 1024}  # bytes a program may have
STACK_LIMIT = 64


def test_the_kernels_compute_what_plain_code_computes() -> None:
    command = [sys.executable, "-m", "pytest", TESTS / "interpreted_kernels.py"]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:]
    assert "30 passed" in run.stdout


def test_every_kernel_fits_the_gpus_with_the_least_shared_memory(tmp_path: Path) -> None:
    """Compiled at the width of the largest model; what does not fit would fail at its first launch."""
    command, cache = [sys.executable, TESTS / "compiled_kernels.py"], {"TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(command, env=os.environ | cache, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    kernels = json.loads(run.stdout)
    assert len(kernels) == 2 * 23
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_LIMITS[kernel["capability"]], kernel
        assert kernel["stack"] <= STACK_LIMIT, kernel
