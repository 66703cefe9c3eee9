"""Job files: how the pipeline and its stages, each a process, exchange progress and cancellation."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosmos_triton.pipeline.errors import Cancelled

PROGRESS_BYTES = 120


@dataclass(frozen=True, slots=True)
class Progress:
    """`stage` has done `done` of `total` steps of a job, in the process `pid`."""

    stage: str
    done: int
    total: int
    pid: int

    @property
    def is_complete(self) -> bool:
        return self.done == self.total


def label(job: str) -> str:
    """What logs and reports call a job: its id is a secret, with which stages can be called past the guardrails."""
    return hashlib.sha256(job.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class JobFiles:
    """One file for each job in flight. It holds the latest progress of the stage at work.

    Triton passes no cancellation from a BLS model on to the models that it calls. In the other direction it passes no
    progress, and it does not say that a stage's process died until the stage is called again. So the pipeline creates a
    file for each job and deletes it when the job ends or is cancelled; stages write progress into it, and stop when it
    is gone.

    A job's id is random and is told to nobody: logs and reports have its `label`. Stages only work for known ids, so
    that no client can call one directly and bypass the guardrails.
    """

    folder: Path

    def begin(self, job: str) -> None:
        (self.folder / job).touch()

    def end(self, job: str) -> None:
        (self.folder / job).unlink(missing_ok=True)

    def is_wanted(self, job: str) -> bool:
        return (self.folder / job).is_file()

    def of(self, request: Any) -> str:
        """The id of the job that a stage's request belongs to.

        Raises:
            Cancelled: the job was cancelled or has ended, or the request names no known job.
        """
        job = str(json.loads(request.parameters() or "{}").get("job", ""))
        if not re.fullmatch("[0-9a-f]{32}", job) or not self.is_wanted(job):
            raise Cancelled
        return job

    def report(self, job: str, stage: str, done: int, total: int) -> None:
        """Write the progress of `stage`, called by the process that runs it.

        Raises:
            Cancelled: the job was cancelled or has ended.
        """
        content = json.dumps(asdict(Progress(stage, done, total, os.getpid())))
        try:
            file = os.open(self.folder / job, os.O_WRONLY)
        except FileNotFoundError:
            raise Cancelled from None
        try:
            os.pwrite(file, content.ljust(PROGRESS_BYTES).encode(), 0)  # one write: a reader never sees half of it
        finally:
            os.close(file)

    def progress(self, job: str) -> Progress | None:
        """The latest progress, or None before the first."""
        try:
            content = (self.folder / job).read_bytes()
        except FileNotFoundError:
            return None
        return Progress(**json.loads(content)) if content else None
