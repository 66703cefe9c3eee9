"""The pipeline as it is delivered, but for the time that it gives its guardrails."""

from cosmos_triton.pipeline.orchestrator import Orchestrator


class TritonPythonModel(Orchestrator):
    guardrail_seconds = 8.0
