"""Jobs: how a pipeline and its stages tell each other of progress, cancellation and death."""

from __future__ import annotations

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
    """How far `stage` is with a job, in the words of the process that works on it."""

    stage: str
    done: int
    total: int
    pid: int

    @property
    def is_complete(self) -> bool:
        return self.done == self.total


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs that somebody waits for, as one file each; in it, the progress of the stage that is at work.

    The server passes no cancellation from a pipeline on to its stages, and from the stages neither progress nor,
    between two answers, the news of a death: both sides look here. And since a job's id is a secret until the job has
    ended, nobody but a pipeline can have a stage work, past the guardrails.
    """

    folder: Path

    def begin(self, job: str) -> None:
        (self.folder / job).touch()

    def end(self, job: str) -> None:
        (self.folder / job).unlink(missing_ok=True)

    def is_wanted(self, job: str) -> bool:
        return (self.folder / job).is_file()

    def of(self, request: Any) -> str:
        """The job that a stage's request belongs to.

        Raises:
            Cancelled: it was cancelled, or there never was one.
        """
        job = str(json.loads(request.parameters() or "{}").get("job", ""))
        if not re.fullmatch("[0-9a-f]{32}", job) or not self.is_wanted(job):
            raise Cancelled
        return job

    def report(self, job: str, stage: str, done: int, total: int) -> None:
        """Raises Cancelled if nobody waits for the job any more."""
        content = json.dumps(asdict(Progress(stage, done, total, os.getpid())))
        try:
            file = os.open(self.folder / job, os.O_WRONLY)
        except FileNotFoundError:
            raise Cancelled from None
        try:
            os.pwrite(file, content.ljust(PROGRESS_BYTES).encode(), 0)  # at one go: a reader never sees half of it
        finally:
            os.close(file)

    def progress(self, job: str) -> Progress | None:
        """What was reported last."""
        try:
            content = (self.folder / job).read_bytes()
        except FileNotFoundError:
            return None
        return Progress(**json.loads(content)) if content else None
