"""Processes of this machine, as /proc shows them."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
ENDED = "ZX"  # a zombie has ended and is not yet waited for
ACTIVE = "RD"
STOPPED = "Tt"  # by a signal, or by a debugger


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process, all of its threads together except for `state`.

    state: of its main thread, a letter: R runs or wants to, S waits, D waits for a disk, T or t is stopped.
    cpu_seconds: time that it has used so far.
    """

    pid: int
    state: str
    parent: int
    cpu_seconds: float

    @property
    def is_stopped(self) -> bool:
        return self.state in STOPPED


def process_status(pid: int) -> ProcessStatus | None:
    """None for a process that has ended, or that there never was."""
    try:
        line = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = line[line.rindex(")") + 2 :].split()  # behind the name, which may hold anything
    state, parent, user, system = fields[0], int(fields[1]), int(fields[11]), int(fields[12])
    if state in ENDED:
        return None
    return ProcessStatus(pid, state, parent, (user + system) / TICKS_PER_SECOND)


def has_active_thread(pid: int) -> bool:
    """Whether a thread of a process runs, wants to, or waits for a disk."""
    for thread in (PROC / str(pid) / "task").glob("*/stat"):
        with suppress(OSError):
            line = thread.read_text(errors="replace")
            if line[line.rindex(")") + 2] in ACTIVE:
                return True
    return False


def is_alive(pid: int) -> bool:
    """Whether a process runs, or is stopped."""
    return process_status(pid) is not None


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir(PROC) if name.isdecimal()]
