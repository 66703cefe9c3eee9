"""Which engine runs each stage: what was asked for, else the faster one that is at hand."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from cosmos_triton.export.checkpoints.manifest import Manifest
from cosmos_triton.runtime.backends.graphs import (
    ENGINES,
    FOLDER,
    GRAPHS,
    ONNXRUNTIME,
    TENSORRT,
    TORCH,
    EngineError,
    ExportedStage,
)
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.errors import CosmosError

# Where benchmarks/engines.py shows ONNX Runtime ahead of torch in every round, on one thread as stages run on a CPU.
FASTER_ON_CPU = ("text_encoder", "video_tokenizer_encoder", "video_tokenizer_decoder", "video_guardrail")


def parse_engines(choices: Sequence[str]) -> dict[str, str]:
    """Of options STAGE=ENGINE; EngineError where one is none."""
    engines = {}
    for choice in choices:
        stage, _, engine = choice.partition("=")
        if stage not in GRAPHS:
            raise EngineError(f"--engine: value {choice}; accepted: STAGE=ENGINE with STAGE of {', '.join(GRAPHS)}")
        if engine not in ENGINES:
            raise EngineError(f"--engine: value {choice}; accepted: {stage}=ENGINE with ENGINE of {', '.join(ENGINES)}")
        engines[stage] = engine
    return engines


def choose_engines(
    wanted: Mapping[str, str],
    deployment: Deployment,
    checkpoint_dir: Path,
    *,
    device: str,
    without: Collection[str] = (),
) -> dict[str, ExportedStage]:
    """The graphs of every stage that torch does not run.

    What was not asked for runs on torch, unless this is a CPU on which ONNX Runtime is faster and the stage's graphs
    have been exported and fit.

    Raises:
        EngineError: an engine that was asked for cannot run its stage.
    """
    chosen = {}
    manifest = Manifest.read(checkpoint_dir)
    for stage, engine in wanted.items():
        if stage in without:
            raise EngineError(f"--engine: value {stage}={engine}; accepted: a stage that {deployment.name} has")
        if engine != TORCH:
            chosen[stage] = exported = ExportedStage.below(checkpoint_dir / FOLDER, stage, engine)
            if problem := unfit(exported, stage, deployment, manifest):
                command = exported.command(stage, deployment.name, checkpoint_dir)
                raise EngineError(f"--engine {stage}={engine}: {problem}; make it with: {command}")
            _require_engine(exported, stage)
    if device == "cpu" and find_spec("onnxruntime"):
        for stage in FASTER_ON_CPU:
            exported = ExportedStage.below(checkpoint_dir / FOLDER, stage, ONNXRUNTIME)
            if stage not in wanted and not unfit(exported, stage, deployment, manifest):
                chosen[stage] = exported
    return chosen


def unfit(exported: ExportedStage, stage: str, deployment: Deployment, manifest: Manifest) -> str:
    """Why the graphs cannot stand for the deployment's networks, or nothing. Nothing large is read."""
    # Here, since it brings torch.
    from cosmos_triton.export.graphs.graph_specs import SPECS

    for graph in GRAPHS[stage]:
        file = exported.file(graph)
        if not exported.holds(graph):
            return f"{file}: no such graph"
        try:
            record = exported.record(graph)
        except CosmosError as error:
            return str(error)
        name = SPECS[graph].network_name(deployment)
        if record.network != name:
            return f"{file}: made of the network {record.network}, and {deployment.name} has {name}"
        for weights, sha256 in record.weights.items():
            if weights in manifest.converted and manifest.converted[weights].sha256 != sha256:
                return f"{file}: made of other weights than those of {weights}"
    return ""


def _require_engine(exported: ExportedStage, stage: str) -> None:
    """EngineError unless the engine is installed, and its plans are for this machine."""
    if exported.engine == ONNXRUNTIME and not find_spec("onnxruntime"):
        raise EngineError("onnxruntime: not installed: pip install 'cosmos-triton[onnx]'")
    if exported.engine == TENSORRT:
        from cosmos_triton.runtime.backends.backend import check_target

        for graph in GRAPHS[stage]:
            check_target(exported, graph)
