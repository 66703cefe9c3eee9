"""How much memory the GPU of this machine has to give."""

from __future__ import annotations

import subprocess
import sys

from cosmos_triton.planning.memory_plan import GB
from cosmos_triton.runtime.errors import InvalidValue

AUTO = "auto"
LEAST, MOST = 1, 100_000  # GB that anybody may mean
_ASK = "import torch; print(torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else '')"


def free_gpu_memory() -> float | None:
    """GB that are free, or None where there is no GPU. A process of its own asks: who asks has a context there."""
    answer = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True).stdout.strip()
    return int(answer) / GB if answer else None


def read_gpu_memory(value: str) -> float | None:
    """GB from an option's value; for `auto` what is free, or None where there is no GPU.

    Raises:
        InvalidValue: it is neither `auto` nor a number.
    """
    if value == AUTO:
        return free_gpu_memory()
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not LEAST <= number <= MOST:
        raise InvalidValue("--gpu-memory", value, f"{AUTO}, or GB (10^9 bytes), {LEAST} and more")
    return number
