"""From the checkpoints of a deployment to a ready server that stays so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from cosmos_triton.cli.plan_command import as_text
from cosmos_triton.export.checkpoints.verify import require
from cosmos_triton.planning.gpu_memory import AUTO, free_gpu_memory, read_gpu_memory
from cosmos_triton.planning.host_memory import available_host_memory
from cosmos_triton.planning.memory_plan import GB, TEXT_STAGES, MemoryPlan, plan_memory
from cosmos_triton.runtime.backends.graphs import TENSORRT, TORCH, ExportedStage
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.serving.engine_choice import choose_engines
from cosmos_triton.serving.run_directory import model_repository
from cosmos_triton.serving.serve_repository import serve_repository
from cosmos_triton.serving.supervisor import say
from cosmos_triton.serving.triton_server import SHARED_MEMORY, Addresses, StartError

# Each stage that takes or gives a clip holds it in shared memory: four of them, four requests at once.
CLIPS_IN_SHARED_MEMORY = 16


def serve(
    deployment: Deployment,
    *,
    checkpoint_dir: Path,
    engines: Mapping[str, str],
    gpu_memory: str,
    weights_8bit: bool,
    window: int,
    addresses: Addresses,
    run_dir: Path | None,
    tritonserver: Path | None,
) -> int:
    """Serve one deployment until a signal ends it; returns the exit code.

    Args:
        engines: what runs a stage; the others run on the default engine.
        gpu_memory: GB that it may use, or `auto`.
        weights_8bit: as for `plan_memory`.
        window: tokens that a step of the AR model tries.

    Raises:
        CosmosError: it could not be started, or not be kept running.
    """
    plan = _plan(deployment, gpu_memory, weights_8bit=weights_8bit)
    require(checkpoint_dir, deployment)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    without = () if deployment.is_video2world else TEXT_STAGES
    exported = choose_engines(engines, deployment, checkpoint_dir, device=device, without=without)
    if plan:
        require_room_for_engines(plan, exported)
    _check_shared_memory(CLIPS_IN_SHARED_MEMORY * deployment.frames * deployment.height * deployment.width * 3)
    return serve_repository(
        model_repository(),
        title=deployment.name,
        parameters={
            "deployment": deployment.name,
            "checkpoint_dir": str(checkpoint_dir.resolve()),
            "device": device,
            "window": str(window),
        },
        exported=exported,
        without=without,
        plan=plan,
        addresses=addresses,
        run_dir=run_dir,
        tritonserver=tritonserver,
    )


def _plan(deployment: Deployment, gpu_memory: str, *, weights_8bit: bool) -> MemoryPlan | None:
    """The plan, which the log is told; None where there is no GPU and no budget to keep to.

    Raises:
        StartError: the deployment does not fit, there is less memory than the budget, or too little on the host.
    """
    budget = read_gpu_memory(gpu_memory)
    if budget is None:
        return None
    free = free_gpu_memory() if torch.cuda.is_available() else None  # a budget may be tried on a CPU
    if free is not None and gpu_memory != AUTO and budget > free:
        raise StartError(f"--gpu-memory: value {gpu_memory}; accepted: {free:.1f} or less, which is what is free")
    plan = plan_memory(deployment, budget, weights_8bit=weights_8bit)
    if not plan.fits:
        hint = "" if weights_8bit else "; less with --weights-8bit, see `cosmos-triton plan`"
        raise StartError(
            f"--gpu-memory: value {budget:.1f}; accepted: {plan.peak / GB:.1f} or more for {deployment.name}{hint}"
        )
    available = available_host_memory()
    if plan.host > available:
        raise StartError(
            f"--gpu-memory: value {budget:.1f}; accepted: more, or {plan.host / GB:.1f} GB of the host's memory, which "
            f"then hold weights: {available / GB:.1f} GB are free"
        )
    for line in as_text(plan).splitlines():
        say(line)
    return plan


def require_room_for_engines(plan: MemoryPlan, exported: Mapping[str, ExportedStage]) -> None:
    """Raises StartError where the plan moves weights that TensorRT would keep on the GPU."""
    modes = {stage.stage: stage.mode for stage in plan.stages}
    for stage, graphs in exported.items():
        if graphs.engine == TENSORRT and modes[stage] != "resident":
            raise StartError(
                f"--engine: value {stage}={TENSORRT}; accepted: {TORCH}, since the memory plan has the stage "
                f"{modes[stage]}, or more --gpu-memory"
            )


def _check_shared_memory(needed: int) -> None:
    """Raises StartError where stages could not hand clips to each other: they would die of SIGBUS, much later."""
    status = os.statvfs(SHARED_MEMORY)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise StartError(
            f"{SHARED_MEMORY}: {free >> 20} MiB free; accepted: {needed >> 20} MiB or more "
            "(docker run --shm-size, or an emptyDir of medium Memory in Kubernetes)"
        )
