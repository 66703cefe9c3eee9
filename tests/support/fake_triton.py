"""What `triton_python_backend_utils` has in a stage, as far as pipeline/ uses it, for tests without a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


@dataclass(frozen=True)
class Tensor:
    tensor_name: str
    values: np.ndarray

    def name(self) -> str:
        return self.tensor_name

    def as_numpy(self) -> np.ndarray:
        return self.values


class Request:
    """A request to a model. `inputs_read` says whether anybody looked at its tensors."""

    def __init__(self, parameters: Mapping[str, Any] | str | None = None, **tensors: np.ndarray) -> None:
        self._parameters = parameters if isinstance(parameters, str) else json.dumps(parameters or {})
        self._tensors = [Tensor(name, values) for name, values in tensors.items()]
        self.inputs_read = False
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        return self.sender

    def parameters(self) -> str:
        return self._parameters

    def request_id(self) -> str:
        return "a request"

    def inputs(self) -> list[Tensor]:
        self.inputs_read = True
        return self._tensors


class TritonError:
    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = "INTERNAL", "INVALID_ARG", "UNAVAILABLE", "CANCELLED"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self.text, self.code = message, code

    def message(self) -> str:
        return self.text


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.tensors, self.failure = output_tensors or [], error

    def has_error(self) -> bool:
        return self.failure is not None

    def error(self) -> TritonError | None:
        return self.failure

    def output_tensors(self) -> list[Tensor]:
        return self.tensors


class InferenceRequest:
    """A call of another model, answered by `answer`, which a test sets."""

    answer: Callable[[InferenceRequest], InferenceResponse]

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    def exec(self) -> InferenceResponse:
        return type(self).answer(self)


def using_decoupled_model_transaction_policy(config: Mapping[str, Any]) -> bool:
    return bool(config.get("decoupled", False))


class Sender:
    """Collects the responses to one request of an asynchronous model."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.ended = threading.Event()

    def is_cancelled(self) -> bool:
        return False

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        self.responses.append(response)
        if flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.ended.set()


class Logger:
    lines: list[str] = []  # noqa: RUF012  as in the server, there is one log

    @classmethod
    def log_info(cls, line: str) -> None:
        cls.lines.append(line)

    log_warn = log_error = log_info


@dataclass
class Metric:
    value: float = 0.0
    observed: list[float] = field(default_factory=list)

    def increment(self, by: float) -> None:
        self.value += by

    def observe(self, value: float) -> None:
        self.observed.append(value)


class MetricFamily:
    """`page` holds every metric: the family's name and the labels, and what was written to it."""

    COUNTER, GAUGE, HISTOGRAM = range(3)
    page: dict[tuple[str, frozenset[tuple[str, str]]], Metric] = {}  # noqa: RUF012  as in the server, there is one page

    def __init__(self, name: str, description: str, kind: int) -> None:
        self.name, self.kind = name, kind

    def Metric(self, labels: Mapping[str, str], buckets: list[float] | None = None) -> Metric:
        assert (self.kind == self.HISTOGRAM) == (buckets is not None)
        return self.page.setdefault((self.name, frozenset(labels.items())), Metric())


def counted(name: str, **labels: str) -> list[Metric]:
    """The metrics of a family that have these labels."""
    wanted = set(labels.items())
    return [metric for (family, have), metric in MetricFamily.page.items() if family == name and wanted <= have]


def clear() -> None:
    """An empty log and page."""
    Logger.lines.clear()
    MetricFamily.page.clear()
