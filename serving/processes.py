"""Child processes, and processes that carry a mark."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cosmos_triton.runtime.processes import PROC, all_pids, is_alive, process_status

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
POLL_SECONDS = 0.02


def die_with_parent() -> None:
    """Called in a child: the kernel kills it when its parent ends for any reason."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    """The living children of a process."""
    return [child for child in _children(pid) if is_alive(child)]


def _children(pid: int) -> Iterable[int]:
    """As the kernel lists them, thread by thread; where it keeps no lists, every process is asked for its parent.

    A server has hundreds of threads and is looked at several times a second, so this reads files without `Path`.
    """
    folder = f"{PROC}/{pid}/task"
    try:
        threads = os.listdir(folder)
    except OSError:
        return []
    found: list[int] = []
    for thread in threads:
        try:
            found += map(int, _content(f"{folder}/{thread}/children").split())
        except FileNotFoundError:
            if thread == str(pid) and is_alive(pid):  # it is the file that is missing, not the thread
                return [other for other in all_pids() if (status := process_status(other)) and status.parent == pid]
        except OSError:  # the thread has ended
            continue
    return found


def _content(path: str) -> bytes:
    """The first 64 KiB of a file."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 1 << 16)
    finally:
        os.close(file)


def arguments_of(pid: int) -> list[str]:
    """The command line of a process; empty of one that has ended."""
    return _strings(PROC / str(pid) / "cmdline")


def environment_of(pid: int) -> list[str]:
    """NAME=VALUE that a process was started with; empty where it has ended or belongs to somebody else."""
    return _strings(PROC / str(pid) / "environ")


def _strings(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError:
        return []
    return [os.fsdecode(part) for part in content.removesuffix(b"\0").split(b"\0")] if content else []


def kill(pid: int) -> None:
    """SIGKILL; a process that has ended is fine."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def kill_marked(mark: str, *, seconds: float) -> None:
    """Kill every process that was started with `mark`, NAME=VALUE, in its environment, and all that they start
    meanwhile. Returns when none is alive, at the latest after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while (alive := [pid for pid in all_pids() if _is_marked(pid, mark)]) and time.monotonic() < deadline:
        for pid in alive:
            kill(pid)
        time.sleep(POLL_SECONDS)


def _is_marked(pid: int, mark: str) -> bool:
    return pid != os.getpid() and mark in environment_of(pid) and is_alive(pid)
