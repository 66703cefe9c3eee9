"""The GPU kernels without a GPU: interpreted, and compiled.

Each in its own process: triton reads TRITON_INTERPRET once, on import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from support.paths import SUPPORT

SHARED_LIMITS = {80: 163 * 1024, 89: 99 * 1024}  # bytes per program
STACK_LIMIT = 64


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Both run concurrently, on one core each."""
    cache = {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    commands = {
        "interpreted": (["-m", "pytest", SUPPORT / "interpreted_kernels.py"], {"TRITON_INTERPRET": "1"}),
        "compiled": ([SUPPORT / "compiled_kernels.py"], cache),
    }
    started = {
        name: subprocess.Popen(
            [sys.executable, *arguments], env=os.environ | environment, stdout=subprocess.PIPE, text=True
        )
        for name, (arguments, environment) in commands.items()
    }
    yield started
    for process in started.values():
        with process:  # which closes its pipe, and waits
            process.kill()


def test_every_kernel_fits_the_gpus_with_the_least_shared_memory(processes: dict[str, subprocess.Popen[str]]) -> None:
    """Compiled at the width of the largest model; what does not fit would fail at its first launch."""
    out, _ = processes["compiled"].communicate()
    assert processes["compiled"].returncode == 0
    kernels = json.loads(out)
    assert len(kernels) == 23 + 3 + 5 * 2
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_LIMITS[kernel["capability"]], kernel
        assert kernel["stack"] <= STACK_LIMIT, kernel


def test_the_kernels_compute_what_plain_code_computes(processes: dict[str, subprocess.Popen[str]]) -> None:
    out, _ = processes["interpreted"].communicate()
    assert processes["interpreted"].returncode == 0, out[-5000:]
    assert "30 passed" in out
