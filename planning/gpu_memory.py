"""Free memory of this machine's GPU, and the option `--gpu-memory`."""

from __future__ import annotations

import subprocess
import sys

from cosmos_triton.planning.units import GB
from cosmos_triton.runtime.errors import InvalidValue

AUTO = "auto"
MIN_GB, MAX_GB = 1, 100_000  # of a budget; outside of it the value is a mistake
_QUERY = "import torch; print(torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else '')"


def free_gpu_memory() -> float | None:
    """Free GB, or None without a GPU. Queried in a separate process, since the query creates a CUDA context."""
    output = subprocess.run([sys.executable, "-c", _QUERY], capture_output=True, text=True, check=True).stdout.strip()
    return int(output) / GB if output else None


def read_gpu_memory(value: str) -> float | None:
    """The budget in GB; for `auto` the free memory, or None without a GPU.

    Raises:
        InvalidValue: it is neither `auto` nor a number.
    """
    if value == AUTO:
        return free_gpu_memory()
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not MIN_GB <= number <= MAX_GB:
        raise InvalidValue("--gpu-memory", value, f"{AUTO}, or GB (10^9 bytes), {MIN_GB} or more")
    return number
