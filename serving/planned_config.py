"""A plan of GPU memory, written into the models' configurations."""

from __future__ import annotations

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelRateLimiter

from cosmos_triton.planning.memory_plan import MIB, STAGES, MemoryPlan

RESOURCE = "gpu_memory_mib"


def write_plan(plan: MemoryPlan, config: ModelConfig) -> None:
    """Set what the plan decides for the model of `config`; models without networks stay as they are."""
    stage = next((stage for stage in plan.stages if stage.stage == config.name), None)
    if stage is None:
        return
    parameters = {"mode": stage.mode, "precision": stage.precision}
    if stage.mode == "cpu":
        parameters["device"] = "cpu"
    else:
        parameters["gpu_memory_mib"] = str(plan.share(stage) // MIB)
    if stage.mode == "streamed":
        parameters["streamed_blocks"] = str(stage.streamed_blocks)
    if stage.slots:
        parameters["slots"] = str(stage.slots)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    if config.max_batch_size:
        config.max_batch_size = stage.batch
    if stage.working:
        # The nearer to its end, the sooner a clip goes on: first by priority, and for every stage in its share.
        limiter = config.instance_group[0].rate_limiter
        limiter.priority = len(STAGES) - list(STAGES).index(config.name)
        resource = {"name": RESOURCE, "global": True, "count": stage.working // MIB}
        limiter.resources.append(ModelRateLimiter.Resource(**resource))


def rate_limit_options(plan: MemoryPlan) -> list[str]:
    """What tritonserver must be told, so that stages at work stay within the plan's pool together."""
    return ["--rate-limit=execution_count", f"--rate-limit-resource={RESOURCE}:{plan.pool // MIB}"]
