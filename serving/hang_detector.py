"""Finds processes that hang: that are alive, and will not go on by themselves within a time that one may wait."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from cosmos_triton.runtime.heartbeat import Beat
from cosmos_triton.serving.observation import StageProcess

STOPPED_SECONDS = 1.0  # a debugger that takes a look stops a process for less
SILENT_SECONDS = 3.0  # without a heartbeat, of which the last QUIET_SECONDS without a sign of work
QUIET_SECONDS = 2.5
STILL_SECONDS = 10.0  # at work, with heartbeats, and no thread that does anything
BUSY_SECONDS = 60.0  # without a heartbeat, at work: a native call holds the interpreter lock
LOAD_IDLE_SECONDS = 120.0  # of a process that loads, which has no heartbeat yet, or imports libraries
WORK_SHARE = 0.2  # of a CPU: with less, and waiting at every look, a process is not at work
LOAD_SHARE = 0.001  # of a CPU: with less, it does not load
LOAD_HANGS = "does not go on loading"
MAX_STEP = 1.0  # seconds between two looks that count; after more, this process itself did not run


@dataclass(slots=True)
class _Track:
    """One process. For how many seconds it has been: stopped; without a heartbeat; without a sign of work; without
    any use of the CPU, since it had used `cpu_when_idle` seconds of it; at the same work, with no thread active.
    """

    beat: Beat | None
    cpu: float
    cpu_when_idle: float
    stopped: float = 0.0
    silent: float = 0.0
    quiet: float = 0.0
    idle: float = 0.0
    still: float = 0.0

    def advance(self, process: StageProcess, step: float) -> None:
        status, beat = process.status, process.beat
        self.stopped = self.stopped + step if status.is_stopped else 0.0
        self.silent = self.silent + step if beat == self.beat else 0.0
        is_same_work = beat is not None and self.beat is not None and beat.work == self.beat.work != 0
        is_still = is_same_work and not process.is_active and status.cpu_seconds == self.cpu
        self.still = self.still + step if is_still else 0.0
        is_at_work = status.state in "RD" or status.cpu_seconds - self.cpu > WORK_SHARE * step
        self.quiet = 0.0 if is_at_work else self.quiet + step
        if status.cpu_seconds - self.cpu_when_idle > LOAD_SHARE * self.idle:
            self.idle, self.cpu_when_idle = 0.0, status.cpu_seconds
        else:
            self.idle += step
        self.beat, self.cpu = beat, status.cpu_seconds


class HangDetector:
    """Watches processes from look to look. A long time between two looks counts as a short one: where this process was
    stopped, or the whole machine, nobody else is to blame.
    """

    def __init__(self) -> None:
        self._tracks: dict[int, _Track] = {}
        self._last: float | None = None

    def look(self, now: float, processes: Iterable[StageProcess], *, loading: Collection[int]) -> dict[int, str]:
        """Processes that hang, and the reason of each.

        Args:
            processes: all of them; those that are missing are forgotten.
            loading: pids of those that load a model.
        """
        step = 0.0 if self._last is None else min(now - self._last, MAX_STEP)
        self._last = now
        tracks = {}
        for process in processes:
            cpu = process.status.cpu_seconds
            tracks[process.pid] = track = self._tracks.get(process.pid) or _Track(process.beat, cpu, cpu)
            track.advance(process, step)
        self._tracks = tracks
        reasons = {pid: _reason(track, is_loading=pid in loading) for pid, track in tracks.items()}
        return {pid: reason for pid, reason in reasons.items() if reason}


def _reason(track: _Track, *, is_loading: bool) -> str:
    if track.stopped >= STOPPED_SECONDS:
        return "stopped"
    if is_loading:
        return LOAD_HANGS if track.idle >= LOAD_IDLE_SECONDS else ""
    is_silent = track.silent >= SILENT_SECONDS and track.quiet >= QUIET_SECONDS
    if track.beat is not None and (is_silent or track.silent >= BUSY_SECONDS):
        return "does not answer"
    return "does not go on" if track.still >= STILL_SECONDS else ""
