"""The settings of one stage, as `serve` writes them into the parameters of its configuration and the stage reads them.

A parameter is a string under a name. Both directions are here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from cosmos_triton.runtime.backends.graphs import BACKENDS
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.releases import RELEASES, Release
from cosmos_triton.runtime.stages import Mode, Precision

BACKEND_PARAMETER = "engine"  # its name in a configuration, and the option's of `serve`
NAMES = {"backend": BACKEND_PARAMETER}  # of parameters that are not called like their field


@dataclass(frozen=True, slots=True)
class StageSettings:
    """None and 0 mean "not set": what neither a plan nor an option decides is left to config.pbtxt.

    deployment: in two parameters, its name and its release's; without the latter it is of Cosmos-1.0.
    device: "cpu" or "cuda".
    jobs_dir: where stages and pipeline meet, a file a job.
    backend: what runs the stage's networks: torch, onnxruntime or tensorrt.
    mode: where the weights are kept, by the memory plan; without a plan they are resident.
    precision: of the weights on the GPU, by the memory plan.
    gpu_memory_mib: the most that the stage's process may allocate.
    streamed_blocks: how many blocks of a streamed network do not stay on the GPU; all of them when not set.
    slots: clips that the AR sampler generates at once, each with a slot of the KV cache.
    window: tokens that a step of the AR model tries; more than 1 is speculative decoding.
    max_queue_size: length of the AR sampler's request queue.
    max_jobs: requests that an entry model has under way at most.
    """

    deployment: Deployment
    checkpoint_dir: Path
    device: str
    jobs_dir: Path | None = None
    backend: str | None = None
    mode: Mode | None = None
    precision: Precision | None = None
    gpu_memory_mib: int = 0
    streamed_blocks: int = 0
    slots: int = 0
    window: int = 0
    max_queue_size: int = 0
    max_jobs: int = 0

    def to_parameters(self) -> dict[str, str]:
        """What is set, by the parameter's name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {"deployment": self.deployment.name, "release": self.deployment.release.name}
        return {NAMES.get(name, name): str(value) for name, value in values.items() if value}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str], *, required: Collection[str] = ()) -> StageSettings:
        """Parameters of other names are not looked at.

        Args:
            required: fields that must be set, beside those without a default.

        Raises:
            InvalidValue: a value that is missing or none of those accepted, by its parameter's name.
        """
        values = {}
        for field, read in READERS.items():
            name = NAMES.get(field, field)
            if name in parameters:
                values[field] = read(name, parameters[name])
            elif field in ALWAYS_SET or field in required:
                raise InvalidValue(name, "missing", "a parameter of the model's configuration")
        if "release" in parameters:
            values["deployment"] = values["deployment"].of(_release("release", parameters["release"]))
        return cls(**values)


ALWAYS_SET = ("deployment", "checkpoint_dir", "device")


def _one_of(*accepted: str) -> Callable[[str, str], str]:
    def read(name: str, text: str) -> str:
        if text not in accepted:
            raise InvalidValue(name, text, ", ".join(accepted))
        return text

    return read


def _deployment(name: str, text: str) -> Deployment:
    return DEPLOYMENTS[_one_of(*DEPLOYMENTS)(name, text)]


def _release(name: str, text: str) -> Release:
    return RELEASES[_one_of(*RELEASES)(name, text)]


def _path(_: str, text: str) -> Path:
    return Path(text)


def _count(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InvalidValue(name, text, "a whole number, 1 or more")
    return int(text)


READERS: dict[str, Callable[[str, str], Any]] = {
    "deployment": _deployment,
    "checkpoint_dir": _path,
    "device": _one_of("cpu", "cuda"),
    "jobs_dir": _path,
    "backend": _one_of(*BACKENDS),
    "mode": _one_of(*get_args(Mode)),
    "precision": _one_of(*get_args(Precision)),
    **dict.fromkeys(("gpu_memory_mib", "streamed_blocks", "slots", "window", "max_queue_size", "max_jobs"), _count),
}
