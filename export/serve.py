"""From the checkpoints of a deployment to a ready server that stays so."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from cosmos_triton.export.run_directory import model_repository
from cosmos_triton.export.serve_repository import serve_repository
from cosmos_triton.export.triton_server import SHARED_MEMORY, Addresses, StartError
from cosmos_triton.export.verify import require
from cosmos_triton.runtime.deployments import Deployment

TEXT_STAGES = {"text_guardrail", "text_encoder"}
# Each stage that takes or gives a clip holds it in shared memory: four of them, four requests at once.
CLIPS_IN_SHARED_MEMORY = 16


def serve(
    deployment: Deployment,
    *,
    checkpoint_dir: Path,
    addresses: Addresses,
    run_dir: Path | None,
    tritonserver: Path | None,
) -> int:
    """Serve one deployment until a signal ends it; returns the exit code.

    Raises:
        CosmosError: it could not be started, or not be kept running.
    """
    require(checkpoint_dir, deployment)
    _check_shared_memory(CLIPS_IN_SHARED_MEMORY * deployment.frames * deployment.height * deployment.width * 3)
    return serve_repository(
        model_repository(),
        title=deployment.name,
        parameters={
            "deployment": deployment.name,
            "checkpoint_dir": str(checkpoint_dir.resolve()),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        },
        without=() if deployment.is_video2world else TEXT_STAGES,
        addresses=addresses,
        run_dir=run_dir,
        tritonserver=tritonserver,
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
