"""What the stages' model.py files share: settings, tensors in and out, errors that survive the way through a pipeline.

The server drops an error's code where one model calls another. A message therefore starts with its code in brackets,
and the pipeline reads it back.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import triton_python_backend_utils as pb
from numpy.typing import NDArray

from cosmos_triton.runtime.backends.graphs import ENGINE, LINKED_GRAPHS, TORCH, ExportedStage
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.runtime.errors import InvalidInput

if TYPE_CHECKING:
    from cosmos_triton.runtime.residency import Placement, Residency
    from cosmos_triton.runtime.stage_loader import Stages

Array = NDArray[Any]

FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
PROGRESS_BYTES = 120


class StageError(Exception):
    """`code` is Triton's name for the kind of error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Cancelled(StageError):
    """Nobody waits for this work any more."""

    def __init__(self) -> None:
        super().__init__("CANCELLED", "the request was cancelled")


@dataclass(frozen=True, slots=True)
class Settings:
    """The parameters that the run directory sets in every model's configuration.

    `exported` are the model's graphs where another engine than torch runs it.
    """

    name: str
    deployment: Deployment
    checkpoint_dir: Path
    device: str
    jobs: Jobs
    parameters: dict[str, str]
    exported: ExportedStage | None

    @classmethod
    def read(cls, args: dict[str, str]) -> Settings:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        return cls(
            name=config["name"],
            deployment=DEPLOYMENTS[parameters["deployment"]],
            checkpoint_dir=Path(parameters["checkpoint_dir"]),
            device=parameters["device"],
            jobs=Jobs(Path(parameters["jobs_dir"])),
            parameters=parameters,
            exported=None
            if parameters.get(ENGINE, TORCH) == TORCH
            else ExportedStage(parameters[ENGINE], Path(args["model_repository"], LINKED_GRAPHS)),
        )

    @classmethod
    def for_networks(cls, args: dict[str, str]) -> Settings:
        """The settings of a stage that runs networks, whose libraries are set up for a server."""
        import torch  # here, since the pipelines do without

        from cosmos_triton.runtime.residency import limit_gpu_memory

        settings = cls.read(args)
        if settings.device == "cpu" and settings.parameters.get("mode") != "cpu":
            torch.set_num_threads(1)  # the stages share the cores: each on all of them at once is slower
        if settings.device != "cpu" and "gpu_memory_mib" in settings.parameters:
            limit_gpu_memory(int(settings.parameters["gpu_memory_mib"]) << 20)
        if transformers := sys.modules.get("transformers"):  # slow to import where it has no use
            transformers.utils.logging.disable_progress_bar()
        return settings

    def placement(self) -> Placement:
        """How the memory plan has the stage keep its weights; without a plan they stay where they are."""
        from cosmos_triton.runtime.residency import Placement

        mode = self.parameters.get("mode", "resident")
        residency = cast("Residency", "resident" if mode == "cpu" else mode)
        count = self.parameters.get("streamed_blocks")
        return Placement(self.device, residency, None if count is None else int(count))

    def stages(self, placement: Placement) -> Stages:
        """What loads the stage's networks."""
        from cosmos_triton.runtime.stage_loader import Stages

        weights_8bit = self.parameters.get("precision") == "int8"
        return Stages(self.deployment, self.checkpoint_dir, placement, self.exported, weights_8bit=weights_8bit)


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


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that its parent has not asked after yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def optional_array(request: Any, name: str) -> Array | None:
    """An input tensor, or None where it was left out."""
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def array(request: Any, name: str) -> Array:
    """An input tensor that the configuration insists on."""
    values = optional_array(request, name)
    assert values is not None, f"the server let a request without {name} through"
    return values


def scalar(request: Any, name: str) -> Any:
    """The only value of an input tensor as a Python number, or None where it was left out."""
    values = optional_array(request, name)
    return None if values is None else values.reshape(-1)[0].item()


def texts(request: Any, name: str) -> list[str]:
    """The strings of an input tensor; none where it was left out.

    Raises:
        InvalidInput: one is not UTF-8.
    """
    values = optional_array(request, name)
    try:
        return [] if values is None else [bytes(value).decode() for value in values.reshape(-1)]
    except UnicodeDecodeError as error:
        raise InvalidInput(name, f"bytes that are not UTF-8 ({error.reason})", "text in UTF-8") from None


def string_tensor(name: str, value: str | bytes) -> Any:
    data = value.encode() if isinstance(value, str) else value
    return pb.Tensor(name, np.array([data], dtype=np.object_))


def json_tensor(name: str, value: object) -> Any:
    return string_tensor(name, json.dumps(value))


def tagged(code: str, message: str) -> str:
    return f"[{code}] {message}"


def describe(error: BaseException) -> tuple[str, str]:
    """Code and message of what went wrong."""
    if isinstance(error, InvalidInput):
        return "INVALID_ARG", str(error)
    if isinstance(error, StageError):
        return error.code, str(error)
    return "INTERNAL", f"{type(error).__name__}: {error}"


def failure(stage: str, request_id: str, error: BaseException) -> Any:
    """The response for what went wrong, which the log is told as well."""
    code, message = describe(error)
    log = pb.Logger.log_error if code == "INTERNAL" else pb.Logger.log_info
    log(f"{stage} {request_id}: {tagged(code, message)}")
    return pb.InferenceResponse(error=pb.TritonError(tagged(code, message), getattr(pb.TritonError, code)))


def answer_each(stage: str, requests: Sequence[Any], work: Callable[[Any], list[Any]]) -> list[Any]:
    """One response for each request, whatever it holds: its neighbours must not suffer."""
    responses = []
    for request in requests:
        try:
            responses.append(pb.InferenceResponse(work(request)))
        except Exception as error:
            responses.append(failure(stage, request.request_id(), error))
    return responses
