"""The kernels of the diffusion decoder and the video tokenizers where there is no GPU: interpreted.

In a process of its own: triton reads once, when it is imported, whether it is to interpret.
`test_ar_kernels.py` compiles them.
"""

from __future__ import annotations

import os
import subprocess
import sys

from support.paths import SUPPORT


def test_the_kernels_compute_what_plain_code_computes() -> None:
    command = [sys.executable, "-m", "pytest", SUPPORT / "interpreted_diffusion_kernels.py"]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:]
    assert "16 passed" in run.stdout
