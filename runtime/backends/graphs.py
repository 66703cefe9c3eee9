"""Graphs: networks of stateless stages as other engines than torch run them, and what is recorded of each.

A stage's graphs for one engine lie in one folder, a file a network with a JSON record beside it. No torch here: the
command line reads the names.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cosmos_triton.runtime.errors import CosmosError

TORCH, ONNXRUNTIME, TENSORRT = ENGINES = ("torch", "onnxruntime", "tensorrt")

# The networks of each stage that can run as a graph. The other stages have no choice of engine.
GRAPHS: dict[str, tuple[str, ...]] = {
    "text_encoder": ("text_encoder",),
    "video_tokenizer_encoder": ("discrete_encoder",),
    "video_tokenizer_decoder": ("discrete_decoder",),
    "diffusion_decoder": ("denoising_step", "continuous_decoder"),
    "video_guardrail": ("content_classifier", "face_detector"),
}

ENGINE = "engine"  # the parameter of a model that names its engine
LINKED_GRAPHS = "graphs"  # in a model's folder: its graphs
FOLDER = "engines"  # of all graphs, in the checkpoint directory
SUFFIXES = {ONNXRUNTIME: ".onnx", TENSORRT: ".plan"}


class EngineError(CosmosError):
    """An engine that cannot run a stage, or a graph that it cannot run."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output. Axes of any length have a name in place of a number; `dtype` is torch's name for it."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What a plan was built for; it runs nowhere else."""

    gpu: str
    compute_capability: str
    tensorrt: str

    def __str__(self) -> str:
        return f"{self.gpu} (compute capability {self.compute_capability}), TensorRT {self.tensorrt}"


@dataclass(frozen=True, slots=True)
class GraphRecord:
    """What is known of a graph's file.

    network: name of the preset whose network it is.
    precision: what it computes in: float32, bfloat16, float16 or float8.
    opset: the version of ONNX's operators that it was exported with.
    weights: the checkpoint files that it was made from, with the SHA-256 of each.
    sha256: of the ONNX graph, which names weights but does not hold the large ones.
    largest_error: how far its outputs were from torch's, relative to their largest value; for tokens, the share that
        differed. None where nothing was compared.
    target, profiles: of a plan. A profile has the least, the usual and the largest shape of an input.
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
        """EngineError if it cannot be read."""
        try:
            content = json.loads(path.read_text())
            for ports in (content["inputs"], content["outputs"]):
                ports.update({name: Port(port["dtype"], tuple(port["shape"])) for name, port in ports.items()})
            if content["target"]:
                content["target"] = Target(**content["target"])
            return cls(**content)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise EngineError(f"{path}: not the record of a graph: {error}") from error

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class ExportedStage:
    """The graphs of one stage for one engine."""

    engine: str
    folder: Path

    @classmethod
    def below(cls, root: Path, stage: str, engine: str) -> ExportedStage:
        return cls(engine, root / stage / engine)

    def file(self, graph: str) -> Path:
        """The graph itself; behind links, since what lies beside it is looked for where it really is."""
        return (self.folder / f"{graph}{SUFFIXES[self.engine]}").resolve()

    def record_file(self, graph: str) -> Path:
        return self.folder / f"{graph}.json"

    def record(self, graph: str) -> GraphRecord:
        """EngineError if it cannot be read."""
        return GraphRecord.read(self.record_file(graph))

    def holds(self, graph: str) -> bool:
        """Whether the graph is there, whole: the record is written last."""
        return self.file(graph).is_file() and self.record_file(graph).is_file()

    def command(self, stage: str, deployment: str, checkpoint_dir: Path) -> str:
        """What makes them."""
        kind = {ONNXRUNTIME: "onnx", TENSORRT: "tensorrt"}[self.engine]
        options = f"--stage {stage} --deployment {deployment} --checkpoint-dir {checkpoint_dir}"
        return f"cosmos-triton export {kind} {options}"
