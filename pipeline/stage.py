"""A stage's side of its requests: who may call it, what its inputs may be, how they are answered and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import triton_python_backend_utils as pb

from cosmos_triton.pipeline.errors import OK
from cosmos_triton.pipeline.job_files import label
from cosmos_triton.pipeline.metrics import RequestMetrics
from cosmos_triton.pipeline.responses import describe, failure
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.tensors import Inputs, inputs_of, request_parameters
from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.stages import STAGES

SENT = "sent_ns"  # the parameter of a stage's request that says when it was sent: `time.monotonic_ns()`


@dataclass(eq=False, slots=True)
class StageCall:
    """One request of a stage.

    job: the id of its job, which is living when the request is admitted. Empty until then.
    inputs: tensors by name, of the shapes and types that the stage accepts; optional ones may be missing.
    began: `time.monotonic()` when the work on it began.
    waited: seconds between that and the pipeline's call; None where that is not known.
    is_counted: whether its answer counts as one in the metrics.
    """

    job: str = ""
    inputs: Inputs = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    waited: float | None = None
    is_counted: bool = True


class Stage:
    """Admits the requests of one stage, hands them to its work, and answers them.

    Whoever reaches the server can call a stage. What does not belong to a living job, or has inputs that the stage does
    not accept, is refused before anything is done with its tensors.
    """

    def __init__(self, settings: Settings) -> None:
        self.name = settings.name
        self._jobs = settings.jobs
        self._accepted = STAGES[settings.name].inputs(settings.deployment)
        self._metrics = RequestMetrics()

    def answer_each(self, requests: Sequence[Any], work: Callable[[StageCall], list[Any]]) -> list[Any]:
        """One response a request: the tensors that `work` returns, or an error of its own."""
        return [self.answer_together([request], lambda calls: [work(calls[0])])[0] for request in requests]

    def answer_together(
        self, requests: Sequence[Any], work: Callable[[list[StageCall]], Sequence[list[Any]]]
    ) -> list[Any]:
        """One response a request.

        Args:
            work: called once with all admitted requests; returns the tensors of each. What it raises answers them all.
        """
        calls = [StageCall() for _ in requests]
        errors: dict[StageCall, Exception] = {}
        for call, request in zip(calls, requests, strict=True):
            try:
                self._admit(call, request)
            except Exception as error:
                errors[call] = error
        admitted = [call for call in calls if call not in errors]
        outputs: dict[StageCall, list[Any]] = {}
        try:
            if admitted:
                outputs = dict(zip(admitted, work(admitted), strict=True))
        except Exception as error:
            errors |= dict.fromkeys(admitted, error)
        return [self._response(call, errors.get(call), outputs.get(call)) for call in calls]

    def count(self, call: StageCall, code: str) -> None:
        """A request was answered, or given up, just now."""
        self._metrics.count(self.name, code, time.monotonic() - call.began, call.waited)

    def _admit(self, call: StageCall, request: Any) -> None:
        """Raises InvalidValue for what the stage will not work on."""
        parameters = request_parameters(request)
        call.job = self._jobs.of(parameters)
        if isinstance(sent := parameters.get(SENT), int):
            call.waited = max(0.0, call.began - sent / 1e9)
        inputs = inputs_of(request)
        for name, tensor in inputs.items():
            if name not in self._accepted:
                raise InvalidValue(name, "given", f"of this deployment: {', '.join(self._accepted)}")
            self._accepted[name].check(name, tensor)
        call.inputs = inputs

    def _response(self, call: StageCall, error: Exception | None, tensors: list[Any] | None) -> Any:
        if call.is_counted:
            self.count(call, OK if error is None else describe(error)[0])
        if error is not None:
            return failure(self.name, label(call.job) if call.job else "without a job", error)
        return pb.InferenceResponse(tensors)
