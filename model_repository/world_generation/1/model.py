"""The whole pipeline; see cosmos_triton/model_repository/orchestrator.py."""

from cosmos_triton.pipeline.orchestrator import Orchestrator


class TritonPythonModel(Orchestrator):
    pass
