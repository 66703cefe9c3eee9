"""Processes of this machine."""

from __future__ import annotations

import psutil


def is_alive(pid: int) -> bool:
    """Whether a process runs. A zombie, which has ended and is not yet waited for, does not."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
