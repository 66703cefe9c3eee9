"""The memory plan, written into the models' configurations."""

from __future__ import annotations

from dataclasses import replace

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelRateLimiter

from cosmos_triton.planning.memory_plan import MemoryPlan
from cosmos_triton.planning.stage_options import StagePlan
from cosmos_triton.planning.units import MIB
from cosmos_triton.runtime.stage_settings import StageSettings
from cosmos_triton.runtime.stages import STAGES

RESOURCE = "gpu_memory_mib"  # of the server's rate limiter


def write_plan(plan: MemoryPlan, settings: StageSettings, config: ModelConfig) -> None:
    """Write what the plan decides for the model of `config` into it. Models without networks stay as they are.

    Args:
        settings: of every model, before the plan.
    """
    stage = next((stage for stage in plan.stages if stage.stage == config.name), None)
    if stage is None:
        return
    for name, value in planned(settings, plan, stage).to_parameters().items():
        config.parameters[name].string_value = value
    if config.max_batch_size:
        config.max_batch_size = stage.batch
    if stage.workspace_bytes:
        limiter = config.instance_group[0].rate_limiter
        limiter.priority = _priority(config.name)
        resource = {"name": RESOURCE, "global": True, "count": stage.workspace_bytes // MIB}
        limiter.resources.append(ModelRateLimiter.Resource(**resource))


def planned(settings: StageSettings, plan: MemoryPlan, stage: StagePlan) -> StageSettings:
    """The settings of one stage of the plan."""
    settings = replace(settings, mode=stage.mode, precision=stage.precision, slots=stage.slots)
    if stage.mode == "cpu":
        return replace(settings, device="cpu")
    streamed_blocks = stage.streamed_blocks if stage.mode == "streamed" else 0
    return replace(settings, gpu_memory_mib=plan.allocator_limit(stage) // MIB, streamed_blocks=streamed_blocks)


def _priority(stage: str) -> int:
    """The server gives priority 2 half the turns of priority 1. The later a stage, the more turns it gets: a clip that
    is nearly finished is not overtaken for ever by new ones."""
    with_networks = [name for name, spec in STAGES.items() if spec.networks]
    return len(with_networks) - with_networks.index(stage)


def rate_limit_options(plan: MemoryPlan) -> list[str]:
    """Options of tritonserver that keep stages at work within the plan's pool."""
    return ["--rate-limit=execution_count", f"--rate-limit-resource={RESOURCE}:{plan.pool_bytes // MIB}"]
