"""The whole pipeline; see pipeline/pipeline_model.py."""

from cosmos_triton.pipeline.pipeline_model import PipelineModel


class TritonPythonModel(PipelineModel):
    pass
