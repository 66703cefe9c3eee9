"""Child processes and process groups."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress

import psutil

from cosmos_triton.runtime.processes import is_alive

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Called in a child: the kernel kills it when its parent ends for any reason."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    """The living children of a process."""
    try:
        return [child.pid for child in psutil.Process(pid).children() if is_alive(child.pid)]
    except psutil.NoSuchProcess:
        return []


def arguments_of(pid: int) -> list[str]:
    """The command line of a process; empty of one that has ended."""
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def kill_group(group: int, *, seconds: float) -> None:
    """Kill a process group and wait until no process of it is alive, at most for `seconds`."""
    deadline = time.monotonic() + seconds
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    while time.monotonic() < deadline and any(_group_of(pid) == group and is_alive(pid) for pid in psutil.pids()):
        time.sleep(0.01)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
