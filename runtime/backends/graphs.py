"""Exported graphs: networks of stateless stages for ONNX Runtime and TensorRT, and the record of each.

The graphs of one stage for one backend are in one folder: a file a network, with a JSON record beside it. No torch
here: the command line reads the names.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cosmos_triton.runtime.errors import CosmosError

TORCH, ONNXRUNTIME, TENSORRT = BACKENDS = ("torch", "onnxruntime", "tensorrt")

LINKED_GRAPHS = "graphs"  # in a rendered model's folder: a link to the stage's graphs
FOLDER = "engines"  # in the checkpoint directory: all exported graphs
SUFFIXES = {ONNXRUNTIME: ".onnx", TENSORRT: ".plan"}


class BackendError(CosmosError):
    """A backend that cannot run a stage, or a graph that it cannot run."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output. Axes of any length have a name in place of a number; `dtype` is torch's name for it."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """The GPU and the version that a TensorRT plan was built for; it runs on no other."""

    gpu: str
    compute_capability: str
    tensorrt: str

    def __str__(self) -> str:
        return f"{self.gpu} (compute capability {self.compute_capability}), TensorRT {self.tensorrt}"


@dataclass(frozen=True, slots=True)
class GraphRecord:
    """The JSON record beside a graph's file.

    network: preset of the network.
    precision: of its computation: float32, bfloat16, float16 or float8.
    opset: version of the ONNX operators.
    weights: the checkpoint files that it was made from, with the SHA-256 of each.
    sha256: of the ONNX graph, without the weights that are stored outside of it.
    largest_error: difference of its outputs from torch's, relative to their largest value; for tokens, the share that
        differed. None where nothing was compared.
    target, profiles: of a TensorRT plan. A profile has the min, opt and max shape of an input.
    """

    network: str
    precision: str
    opset: int
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    weights: dict[str, str]
    sha256: str
    versions: dict[str, str]
    largest_error: float | None = None
    target: Target | None = None
    profiles: dict[str, list[list[int]]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> GraphRecord:
        """BackendError if it cannot be read."""
        try:
            content = json.loads(path.read_text())
            for ports in (content["inputs"], content["outputs"]):
                ports.update({name: Port(port["dtype"], tuple(port["shape"])) for name, port in ports.items()})
            if content["target"]:
                content["target"] = Target(**content["target"])
            return cls(**content)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise BackendError(f"{path}: not the record of a graph: {error}") from error

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class ExportedStage:
    """The graphs of one stage for one backend."""

    backend: str
    folder: Path

    @classmethod
    def below(cls, root: Path, stage: str, backend: str) -> ExportedStage:
        return cls(backend, root / stage / backend)

    def file(self, graph: str) -> Path:
        """The graph, links resolved: weights stored outside of it are looked for beside the real file."""
        return (self.folder / f"{graph}{SUFFIXES[self.backend]}").resolve()

    def record_file(self, graph: str) -> Path:
        return self.folder / f"{graph}.json"

    def record(self, graph: str) -> GraphRecord:
        """BackendError if it cannot be read."""
        return GraphRecord.read(self.record_file(graph))

    def holds(self, graph: str) -> bool:
        """Whether the graph is complete: its record is written last."""
        return self.file(graph).is_file() and self.record_file(graph).is_file()

    def command(self, stage: str, deployment: str, release: str, checkpoint_dir: Path) -> str:
        """The command line that exports them."""
        kind = {ONNXRUNTIME: "onnx", TENSORRT: "tensorrt"}[self.backend]
        options = f"--stage {stage} --deployment {deployment} --release {release} --checkpoint-dir {checkpoint_dir}"
        return f"cosmos-triton export {kind} {options}"
