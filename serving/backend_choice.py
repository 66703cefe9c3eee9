"""Which backend runs each stage: the one asked for with `--engine`, else the faster available one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from cosmos_triton.export.checkpoints.manifest import Manifest
from cosmos_triton.runtime.backends.graphs import (
    BACKENDS,
    FOLDER,
    ONNXRUNTIME,
    TENSORRT,
    TORCH,
    BackendError,
    ExportedStage,
)
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.errors import CosmosError
from cosmos_triton.runtime.stages import GRAPHS, STAGES


def parse_backends(choices: Sequence[str]) -> dict[str, str]:
    """The backend of each stage in options STAGE=ENGINE.

    Raises:
        BackendError: an option has another form, or names no stage or backend.
    """
    backends = {}
    for choice in choices:
        stage, _, backend = choice.partition("=")
        if stage not in GRAPHS:
            raise BackendError(f"--engine: value {choice}; accepted: STAGE=ENGINE with STAGE of {', '.join(GRAPHS)}")
        if backend not in BACKENDS:
            raise BackendError(
                f"--engine: value {choice}; accepted: {stage}=ENGINE with ENGINE of {', '.join(BACKENDS)}"
            )
        backends[stage] = backend
    return backends


def choose_backends(
    wanted: Mapping[str, str],
    deployment: Deployment,
    checkpoint_dir: Path,
    *,
    device: str,
) -> dict[str, ExportedStage]:
    """The graphs of every stage that another backend than torch runs.

    The default is torch; on a CPU it is the stage's `cpu_backend` where its graphs have been exported and fit.

    Raises:
        BackendError: a backend in `wanted` cannot run its stage.
    """
    chosen = {}
    manifest = Manifest.read(checkpoint_dir)
    for stage, backend in wanted.items():
        if not STAGES[stage].is_in(deployment):
            raise BackendError(f"--engine: value {stage}={backend}; accepted: a stage that {deployment.name} has")
        if backend != TORCH:
            chosen[stage] = exported = ExportedStage.below(checkpoint_dir / FOLDER, stage, backend)
            if problem := unfit(exported, stage, deployment, manifest):
                command = exported.command(stage, deployment.name, deployment.release.name, checkpoint_dir)
                raise BackendError(f"--engine {stage}={backend}: {problem}; make it with: {command}")
            _require_installed(exported, stage)
    if device == "cpu" and find_spec("onnxruntime"):
        faster = [name for name, spec in STAGES.items() if spec.cpu_backend == ONNXRUNTIME]
        for stage in faster:
            exported = ExportedStage.below(checkpoint_dir / FOLDER, stage, ONNXRUNTIME)
            if stage not in wanted and not unfit(exported, stage, deployment, manifest):
                chosen[stage] = exported
    return chosen


def unfit(exported: ExportedStage, stage: str, deployment: Deployment, manifest: Manifest) -> str:
    """Why the graphs cannot replace the deployment's networks; empty if they can. Reads no large file."""
    # Here, since it imports torch.
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
        if set(record.weights) != set(SPECS[graph].source.files(deployment.release)):
            return f"{file}: made of {', '.join(record.weights)}, which are not of {deployment.release.name}"
        for weights, sha256 in record.weights.items():
            if weights in manifest.converted and manifest.converted[weights].sha256 != sha256:
                return f"{file}: made of other weights than those of {weights}"
    return ""


def _require_installed(exported: ExportedStage, stage: str) -> None:
    """Raises BackendError unless the backend is installed and its plans were built for this machine."""
    if exported.backend == ONNXRUNTIME and not find_spec("onnxruntime"):
        raise BackendError("onnxruntime: not installed: pip install 'cosmos-triton[onnx]'")
    if exported.backend == TENSORRT:
        from cosmos_triton.runtime.backends.backend import check_target

        for graph in GRAPHS[stage]:
            check_target(exported, graph)
