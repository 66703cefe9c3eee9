"""The life of a server on a model repository: render, start, supervise, drain, clean up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from cosmos_triton.planning.memory_plan import MemoryPlan
from cosmos_triton.runtime.backends.graphs import ExportedStage
from cosmos_triton.runtime.stage_settings import StageSettings
from cosmos_triton.runtime.stages import STAGES
from cosmos_triton.serving import server_binary
from cosmos_triton.serving.addresses import Addresses
from cosmos_triton.serving.front_process import front
from cosmos_triton.serving.planned_config import rate_limit_options, write_plan
from cosmos_triton.serving.private_sockets import private_sockets
from cosmos_triton.serving.run_directory import render, run_directory
from cosmos_triton.serving.stop_signals import Stopped, StopSignals
from cosmos_triton.serving.supervisor import Supervisor, say
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
    """
    addresses.check_free()
    binary = server_binary.find(tritonserver)
    stop = StopSignals()
    with run_directory(run_dir) as folder, private_sockets() as sockets, front(addresses, sockets, say):
        models, jobs = folder / "models", folder / "jobs"
        models.mkdir(exist_ok=True)
        jobs.mkdir(exist_ok=True)
        settings = replace(settings, jobs_dir=jobs)
        configs = render(
            repository,
            models,
            parameters={**settings.to_parameters(), **(parameters or {})},
            exported=exported,
            without=without,
            edit=partial(write_plan, plan, settings) if plan else None,
        )
        server = TritonServer(
            binary,
            models,
            jobs=jobs,
            libraries=folder / "lib",
            sockets=sockets,
            has_gpu=settings.device != "cpu",
            options=rate_limit_options(plan) if plan else (),
        )
        supervisor = Supervisor(
            server,
            stop,
            models=configs,
            entry_models={name for name in configs if name in STAGES and STAGES[name].is_entry},
            fatal_models={name for name, config in configs.items() if _is_fatal(name, config)},
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
            stop.handled = 1
            return 0 if _drained(supervisor) else 1
        finally:
            server.kill()


def _is_fatal(name: str, config: ModelConfig) -> bool:
    """Whether requests that the model's process dies with never end. A decoupled model's error behind other responses
    does not reach the model that called it."""
    return config.model_transaction_policy.decoupled or (name in STAGES and STAGES[name].is_fatal)


def _drained(supervisor: Supervisor) -> bool:
    try:
        return supervisor.drain()
    except Stopped:
        return False
