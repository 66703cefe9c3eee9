"""The pipeline as it is delivered, but for the time that it gives its guardrails."""

from cosmos_triton.model_repository.orchestrator import Orchestrator


class TritonPythonModel(Orchestrator):
    guardrail_seconds = 8.0
