"""Job files: how the pipeline and its stages, each a process, exchange progress and cancellation."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosmos_triton.pipeline.errors import Cancelled
from cosmos_triton.runtime.errors import InvalidValue

PROGRESS_BYTES = 120
JOB_ID = re.compile("[0-9a-f]{32}")
JOB = "job"  # the parameter of a stage's request that holds the id of its job
ACCEPTED = "the id of a job under way; clients call world_generation or world_generation_stream"


def new_job_id() -> str:
    """128 random bits."""
    return secrets.token_hex(16)


def label(job: str) -> str:
    """What logs, messages and reports call a job. Its id is secret, since whoever knows it can call a stage."""
    return hashlib.sha256(job.encode(errors="replace")).hexdigest()[:12]


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


@dataclass(frozen=True, slots=True)
class JobFiles:
    """One file for each job in flight. It holds the latest progress of the stage at work.

    Triton passes no cancellation from a BLS model on to the models that it calls. In the other direction it passes no
    progress, and it does not say that a stage's process died until the stage is called again. So the pipeline creates a
    file for each job and deletes it when the job ends or is cancelled; stages write progress into it, and stop when it
    is gone.

    A job's id is random and leaves the server's processes in no form but its `label`. Stages work for living jobs
    only, so that no client can call one directly: to bypass the guardrails, or to keep it from others.
    """

    folder: Path

    def begin(self, job: str) -> None:
        self._file(job).touch()

    def end(self, job: str) -> None:
        self._file(job).unlink(missing_ok=True)

    def is_wanted(self, job: str) -> bool:
        return self._file(job).is_file()

    def of(self, parameters: Mapping[str, Any]) -> str:
        """The id of the living job that a stage's request belongs to.

        Raises:
            InvalidValue: the parameters name no job, or none that is under way.
        """
        job = parameters.get(JOB)
        if not isinstance(job, str):
            raise InvalidValue(JOB, "none" if job is None else f"of type {type(job).__name__}", ACCEPTED)
        if not JOB_ID.fullmatch(job) or not self.is_wanted(job):
            raise InvalidValue(JOB, f"an id with the hash {label(job)}", ACCEPTED)
        return job

    def report(self, job: str, stage: str, done: int, total: int) -> None:
        """Write the progress of `stage`, called by the process that runs it.

        Raises:
            Cancelled: the job was cancelled or has ended.
        """
        content = json.dumps(asdict(Progress(stage, done, total, os.getpid())))
        try:
            file = os.open(self._file(job), os.O_WRONLY)
        except FileNotFoundError:
            raise Cancelled from None
        try:
            os.pwrite(file, content.ljust(PROGRESS_BYTES).encode(), 0)  # one write: a reader never sees half of it
        finally:
            os.close(file)

    def progress(self, job: str) -> Progress | None:
        """The latest progress, or None before the first."""
        try:
            content = self._file(job).read_bytes()
        except FileNotFoundError:
            return None
        return Progress(**json.loads(content)) if content else None

    def _file(self, job: str) -> Path:
        """Raises ValueError for what is no id, and might be a path to somewhere else."""
        if not JOB_ID.fullmatch(job):
            raise ValueError("a job's id has 32 hexadecimal digits")
        return self.folder / job
