"""Serve a deployment: memory plan, checks of the checkpoints, backends, and a supervised server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from cosmos_triton.export.checkpoints.verify import require
from cosmos_triton.planning.gpu_memory import AUTO, free_gpu_memory, read_gpu_memory
from cosmos_triton.planning.host_memory import available_host_memory
from cosmos_triton.planning.memory_plan import MemoryPlan, plan_memory
from cosmos_triton.planning.plan_report import as_text
from cosmos_triton.planning.units import GB
from cosmos_triton.runtime.backends.graphs import TENSORRT, TORCH, ExportedStage
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.fp8_support import require_precision
from cosmos_triton.runtime.stage_settings import StageSettings
from cosmos_triton.runtime.stages import STAGES, Precision
from cosmos_triton.serving.addresses import Addresses, StartError
from cosmos_triton.serving.backend_choice import choose_backends
from cosmos_triton.serving.log_output import say
from cosmos_triton.serving.run_directory import model_repository
from cosmos_triton.serving.serve_repository import serve_repository

# Each stage that takes or returns a clip keeps it in shared memory: four of them, four requests at once.
CLIPS_IN_SHARED_MEMORY = 16


def serve(
    deployment: Deployment,
    *,
    checkpoint_dir: Path,
    backends: Mapping[str, str],
    gpu_memory: str,
    weights_8bit: bool,
    precisions: Mapping[str, Precision],
    window: int,
    addresses: Addresses,
    run_dir: Path | None,
    tritonserver: Path | None,
) -> int:
    """Serve one deployment until a signal ends it; returns the exit code.

    Args:
        backends: by stage; the others run on their default backend.
        gpu_memory: the budget in GB, or `auto`.
        weights_8bit, precisions: as for `plan_memory`.
        window: tokens that a step of the AR model tries.

    Raises:
        CosmosError: the server could not be started, or not be kept running.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for stage, precision in precisions.items():
        require_precision(precision, device, name=f"--precision {stage}")
    plan = _plan(deployment, gpu_memory, weights_8bit=weights_8bit, precisions=precisions)
    require(checkpoint_dir, deployment)
    exported = choose_backends(backends, deployment, checkpoint_dir, device=device)
    for stage in precisions.keys() & exported.keys():
        accepted = f"no --precision with {exported[stage].backend}, whose graph has its own"
        raise InvalidValue("--precision", f"{stage}={precisions[stage]}", accepted)
    if plan:
        require_resident_tensorrt(plan, exported)
    return serve_repository(
        model_repository(),
        title=deployment.name,
        settings=StageSettings(deployment, checkpoint_dir.resolve(), device, window=window),
        exported=exported,
        without={name for name, spec in STAGES.items() if not spec.is_in(deployment)},
        plan=plan,
        addresses=addresses,
        run_dir=run_dir,
        tritonserver=tritonserver,
        shared_memory=CLIPS_IN_SHARED_MEMORY * deployment.frames * deployment.height * deployment.width * 3,
    )


def _plan(
    deployment: Deployment, gpu_memory: str, *, weights_8bit: bool, precisions: Mapping[str, Precision]
) -> MemoryPlan | None:
    """The memory plan, which is logged; None without a GPU and without a budget.

    Raises:
        StartError: the deployment does not fit, or the GPU or the host has less free memory than the plan needs.
    """
    budget = read_gpu_memory(gpu_memory)
    if budget is None:
        return None
    free = free_gpu_memory() if torch.cuda.is_available() else None  # a budget may be tried on a CPU
    if free is not None and gpu_memory != AUTO and budget > free:
        raise StartError(f"--gpu-memory: value {gpu_memory}; accepted: {free:.1f} or less, which is free")
    plan = plan_memory(deployment, budget, weights_8bit=weights_8bit, precisions=precisions)
    if not plan.fits:
        hint = "" if weights_8bit else "; less with --weights-8bit, see `cosmos-triton plan`"
        needed = f"{plan.peak_bytes / GB:.1f} or more for {deployment.name}"
        raise StartError(f"--gpu-memory: value {budget:.1f}; accepted: {needed}{hint}")
    available = available_host_memory()
    if plan.pinned_bytes > available:
        raise StartError(
            f"--gpu-memory: value {budget:.1f}; accepted: a budget whose plan pins at most {available / GB:.1f} GB of "
            f"host memory, which is free; this plan pins {plan.pinned_bytes / GB:.1f} GB"
        )
    for line in as_text(plan).splitlines():
        say(line)
    return plan


def require_resident_tensorrt(plan: MemoryPlan, exported: Mapping[str, ExportedStage]) -> None:
    """Raises StartError where the plan does not keep weights on the GPU that TensorRT would keep there."""
    modes = {stage.stage: stage.mode for stage in plan.stages}
    for stage, graphs in exported.items():
        if graphs.backend == TENSORRT and modes[stage] != "resident":
            raise StartError(
                f"--engine: value {stage}={TENSORRT}; accepted: {TORCH} with this --gpu-memory, since TensorRT needs "
                f"resident weights and the memory plan has them {modes[stage]}"
            )
