"""One request on its way through the stages, and what its client and the log are told about it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import triton_python_backend_utils as pb

from cosmos_triton.pipeline.errors import Cancelled
from cosmos_triton.pipeline.job_files import Progress, label, new_job_id
from cosmos_triton.pipeline.tensors import Array, json_tensor
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.generation_request import GenerationRequest

VERSION = version("cosmos-triton")


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """State of one request.

    pipeline: the model that runs it, world_generation or world_generation_stream
    id: a secret, see JobFiles; logs and reports have its `label`
    visual_input: the bytes of the file, BYTES [1]
    sender: Triton's response sender
    streams: whether events are sent before the result
    id: a secret, see JobFiles; logs and reports have its `label`
    progress: the latest progress of a stage
    has_ended: the final response was sent; a stage that was no longer waited for may still answer
    """

    pipeline: str
    deployment: Deployment
    request: GenerationRequest
    visual_input: Array
    sender: Any
    streams: bool
    id: str = field(default_factory=new_job_id)
    progress: Progress | None = None
    has_ended: bool = False
    report: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.report = {
            "seconds": {},
            "guardrails": [],
            "policy_sha256": None,  # until a prompt was checked
            "faces_blurred": 0,
            "frames_blurred": 0,
            "warnings": [],
            "job": self.label,
            "deployment": self.deployment.name,
            "release": self.deployment.release.name,
            "sampler": None,  # until the diffusion decoder has run
            "versions": {"cosmos-triton": VERSION},
            "parameters": self.request.parameters(),
        }

    @property
    def label(self) -> str:
        return label(self.id)

    def check_wanted(self) -> None:
        """Raises Cancelled if the client is gone or has its result."""
        if self.has_ended or self.sender.is_cancelled():
            raise Cancelled

    def log(self, message: str) -> None:
        pb.Logger.log_info(f"{self.pipeline} {self.label}: {message}")

    def send_event(self, stage: str, done: int, total: int) -> None:
        if self.streams and not self.has_ended:
            event = json_tensor("event", {"stage": stage, "done": done, "total": total})
            self.sender.send(pb.InferenceResponse([event]))

    def record_progress(self, progress: Progress) -> None:
        """Send an event if `progress` is new."""
        if progress != self.progress:
            self.progress = progress
            self.send_event(progress.stage, progress.done, progress.total)

    def record_duration(self, stage: str, started: float) -> None:
        """A stage has ended: its seconds go into report and log, and its last event is sent if it is still missing.

        Args:
            started: `time.monotonic()` when it was called.
        """
        seconds = round(time.monotonic() - started, 3)
        self.report["seconds"][stage] = seconds
        self.log(f"{stage} took {seconds} s")
        if self.progress is None or self.progress.stage != stage:
            self.send_event(stage, 1, 1)
        elif not self.progress.is_complete:
            self.send_event(stage, self.progress.total, self.progress.total)
