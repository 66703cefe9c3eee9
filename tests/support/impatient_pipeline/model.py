"""The pipeline as delivered, with a shorter time limit for its guardrail stages."""

from cosmos_triton.pipeline.pipeline_model import PipelineModel


class TritonPythonModel(PipelineModel):
    guardrail_seconds = 8.0
