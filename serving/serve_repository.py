"""The life of a server on a model repository: render, start, supervise, drain, clean up."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from cosmos_triton.planning.memory_plan import MemoryPlan
from cosmos_triton.runtime.backends.graphs import ExportedStage
from cosmos_triton.runtime.stage_settings import StageSettings
from cosmos_triton.runtime.stages import STAGES
from cosmos_triton.serving import server_binary
from cosmos_triton.serving.addresses import Addresses, StartError
from cosmos_triton.serving.claim import SHARED_MEMORY, Claim, claimed, reclaim, start_reaper
from cosmos_triton.serving.companions import Companion
from cosmos_triton.serving.front_process import front
from cosmos_triton.serving.log_output import log_output, say
from cosmos_triton.serving.planned_config import rate_limit_options, write_plan
from cosmos_triton.serving.private_sockets import PrivateSockets
from cosmos_triton.serving.run_directory import RunFolders, render, run_directory
from cosmos_triton.serving.server_binary import ServerBinary
from cosmos_triton.serving.stage_machine import StageMachine
from cosmos_triton.serving.stop_signals import Stopped, StopSignals
from cosmos_triton.serving.supervisor import Supervisor
from cosmos_triton.serving.triton_server import TritonServer


def serve_repository(
    repository: Path,
    *,
    title: str,
    settings: StageSettings,
    addresses: Addresses,
    parameters: Mapping[str, str] | None = None,
    exported: Mapping[str, ExportedStage] | None = None,
    without: Collection[str] = (),
    plan: MemoryPlan | None = None,
    run_dir: Path | None = None,
    tritonserver: Path | None = None,
    shared_memory: int = 0,
) -> int:
    """Serve the models of `repository` until a signal ends it; returns the exit code.

    Prints one line on standard output when the server is ready; the log goes to standard error.

    Args:
        settings: of every model; `jobs_dir` is set here.
        parameters: more parameters of every model, for models that are not the product's own.
        exported: the graphs of models that another backend than torch runs.
        without: models to leave out.
        plan: of GPU memory; without one every weight is resident and there is no rate limit.
        run_dir: the folder of models/, the rendered models, and jobs/, which is their `jobs_dir`; a temporary one when
            None.
        tritonserver: the executable; searched for when None.
        shared_memory: bytes that must be free for the stages.

    Raises:
        CosmosError: the server could not be started, or not be kept running.
    """
    addresses.check_free()
    binary = server_binary.find(tritonserver)
    try:
        for name in reclaim():
            say(f"removed what an earlier server had left: {name}")
        _check_shared_memory(shared_memory)
        stop = StopSignals()
        with run_directory(run_dir) as folder, claimed() as claim:
            if run_dir is None:
                claim.own(folder)
            folders = RunFolders.make(claim.plain_path(folder, "run"))
            checkpoint_dir = claim.plain_path(settings.checkpoint_dir, "checkpoints")
            settings = replace(settings, jobs_dir=folders.jobs, checkpoint_dir=checkpoint_dir)
            configs = render(
                repository,
                folders.models,
                parameters={**settings.to_parameters(), **(parameters or {})},
                exported=exported,
                without=without,
                edit=partial(write_plan, plan, settings) if plan else None,
            )
            sockets = PrivateSockets(claim.folder)
            server = TritonServer(
                ServerBinary(claim.plain_path(binary.root, "tritonserver")),
                folders,
                claim=claim,
                sockets=sockets,
                has_gpu=settings.device != "cpu",
                options=rate_limit_options(plan) if plan else (),
            )
            with front(addresses, sockets, claim.environment):
                return _supervise(server, configs, claim, stop, on_ready=partial(_say_ready, title, addresses))
    finally:
        log_output().flush()


def _supervise(
    server: TritonServer,
    configs: Mapping[str, ModelConfig],
    claim: Claim,
    stop: StopSignals,
    *,
    on_ready: Callable[[], None],
) -> int:
    """Run the server until a signal ends it; returns the exit code."""
    reaper = Companion("reaper", partial(start_reaper, claim))
    supervisor = Supervisor(
        server,
        stop,
        stages=[stage_machine(name, config) for name, config in configs.items()],
        companions=[reaper],
        entry_models={name for name in configs if name in STAGES and STAGES[name].is_entry},
        on_ready=on_ready,
    )
    try:
        supervisor.run()
    except Stopped:
        stop.handled = 1
        return 0 if _drained(supervisor) else 1
    finally:
        server.kill()
        reaper.kill()


def stage_machine(name: str, config: ModelConfig) -> StageMachine:
    """Requests that a model's process dies with never end where the pipeline's table says so, and where it is
    decoupled: an error behind other responses does not reach the model that called it.
    """
    is_fatal = config.model_transaction_policy.decoupled or (name in STAGES and STAGES[name].is_fatal)
    return StageMachine(name, sum(max(group.count, 1) for group in config.instance_group) or 1, is_fatal)


def _say_ready(title: str, addresses: Addresses) -> None:
    host = addresses.reachable_host
    try:
        print(
            f"{title} is ready: http {host}:{addresses.http_port}, grpc {host}:{addresses.grpc_port}, "
            f"metrics {host}:{addresses.metrics_port}",
            flush=True,
        )
    except OSError:  # nobody listens: the line must not fail again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_shared_memory(needed: int) -> None:
    """Raises StartError where shared memory is too small for clips between stages, which would die of SIGBUS later."""
    status = os.statvfs(SHARED_MEMORY)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise StartError(
            f"{SHARED_MEMORY}: {free >> 20} MiB free; accepted: {needed >> 20} MiB or more "
            "(docker run --shm-size, or an emptyDir of medium Memory in Kubernetes)"
        )


def _drained(supervisor: Supervisor) -> bool:
    try:
        return supervisor.drain()
    except Stopped:
        return False
