"""A model repository, served: rendered, started, watched, drained, and cleared away."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from cosmos_triton.planning.memory_plan import MemoryPlan
from cosmos_triton.runtime.backends.graphs import ExportedStage
from cosmos_triton.serving import server_binary
from cosmos_triton.serving.planned_config import rate_limit_options, write_plan
from cosmos_triton.serving.run_directory import render, run_directory
from cosmos_triton.serving.stop_signals import Stopped, StopSignals
from cosmos_triton.serving.supervisor import Supervisor
from cosmos_triton.serving.triton_server import Addresses, TritonServer

ENTRY_MODELS = {"world_generation", "world_generation_stream"}


def serve_repository(
    repository: Path,
    *,
    title: str,
    parameters: Mapping[str, str],
    addresses: Addresses,
    exported: Mapping[str, ExportedStage] | None = None,
    without: Collection[str] = (),
    plan: MemoryPlan | None = None,
    run_dir: Path | None = None,
    tritonserver: Path | None = None,
) -> int:
    """Serve the models of `repository` until a signal ends it; returns the exit code.

    Says on standard output when it is ready, in one line; the log is on standard error.

    Args:
        parameters: set in the configuration of every model. `device` is "cpu" or "cuda".
        exported: the graphs of the models that they are to run.
        without: models to leave out.
        plan: of GPU memory; without one every weight is resident, and nothing waits for memory.
        run_dir: where to render the models, in models/, and for stages to meet, in jobs/, which they find in their
            parameter `jobs_dir`; a temporary folder when None.
        tritonserver: the executable; looked for when None.
    """
    addresses.check_free()
    binary = server_binary.find(tritonserver)
    with run_directory(run_dir) as folder:
        stop = StopSignals()
        models, jobs = folder / "models", folder / "jobs"
        models.mkdir(exist_ok=True)
        jobs.mkdir(exist_ok=True)
        configs = render(
            repository,
            models,
            parameters={**parameters, "jobs_dir": str(jobs)},
            exported=exported,
            without=without,
            edit=partial(write_plan, plan) if plan else None,
        )
        server = TritonServer(
            binary,
            models,
            jobs=jobs,
            libraries=folder / "lib",
            addresses=addresses,
            has_gpu=parameters["device"] != "cpu",
            options=rate_limit_options(plan) if plan else (),
        )
        entry_models = ENTRY_MODELS & set(configs)
        decoupled = {name for name, config in configs.items() if config.model_transaction_policy.decoupled}
        supervisor = Supervisor(
            server, stop, models=configs, entry_models=entry_models, fatal_models=decoupled | entry_models
        )
        try:
            server.start(stop)
            host = addresses.reachable_host
            print(
                f"{title} is ready: http {host}:{addresses.http_port}, grpc {host}:{addresses.grpc_port}, "
                f"metrics {host}:{addresses.metrics_port}",
                flush=True,
            )
            supervisor.watch()
        except Stopped:
            stop.heeded = 1
            return 0 if _drained(supervisor) else 1
        finally:
            server.kill()


def _drained(supervisor: Supervisor) -> bool:
    try:
        return supervisor.drain()
    except Stopped:
        return False
