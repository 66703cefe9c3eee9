"""What Linux tells of processes, and does to them. A dead process that nobody has waited for yet counts as dead."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Called in a child: it is killed when its parent ends, in whichever way."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    return _family(pid) is not None


def children_of(pid: int) -> list[int]:
    return [child for child in _all() if (family := _family(child)) and family[0] == pid]


def arguments_of(pid: int) -> list[str]:
    """The command line of a process; empty of a dead one."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def kill_group(group: int, *, seconds: float) -> None:
    """Kill a process group, and wait until it is gone; no longer than `seconds`."""
    deadline = time.monotonic() + seconds
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    while time.monotonic() < deadline and any((family := _family(pid)) and family[1] == group for pid in _all()):
        time.sleep(0.01)


def _all() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _family(pid: int) -> tuple[int, int] | None:
    """The parent and the process group of a living process."""
    try:
        # "pid (name) state parent group ...", and the name may hold anything
        state, parent, group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else (int(parent), int(group))
