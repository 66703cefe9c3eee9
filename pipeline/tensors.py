"""Inputs and parameters of a request as Python values, and output tensors from Python values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from numpy.typing import NDArray

from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.stage_inputs import decoded

MAX_PARAMETER_BYTES = 4096  # of a request, as JSON

Array = NDArray[Any]
Inputs = Mapping[str, Array]


def inputs_of(request: Any) -> Inputs:
    """The input tensors that were given, by name. Those of numbers are views of the server's memory, not copies."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def request_parameters(request: Any) -> Mapping[str, Any]:
    """The parameters of a request.

    Raises:
        InvalidValue: they cannot be read, or are many more than a stage has any use for.
    """
    try:
        text = request.parameters() or "{}"
        if len(text) <= MAX_PARAMETER_BYTES and isinstance(parameters := json.loads(text), dict):
            return parameters
    except (ValueError, RecursionError):
        pass
    raise InvalidValue("parameters", "not readable", f"a flat object of up to {MAX_PARAMETER_BYTES} bytes")


def array(inputs: Inputs, name: str) -> Array:
    """An input that the caller must give.

    Raises:
        InvalidValue: it is missing.
    """
    if name not in inputs:
        raise InvalidValue(name, "missing", "a tensor")
    return inputs[name]


def scalar(inputs: Inputs, name: str) -> Any:
    """The value of an optional input of one element as a Python number, None if it was not given."""
    return inputs[name].reshape(-1)[0].item() if name in inputs else None


def text(inputs: Inputs, name: str) -> str | None:
    """The string of an optional input of one element, None if it was not given.

    Raises:
        InvalidValue: it is not UTF-8.
    """
    return decoded(name, inputs[name].reshape(-1)[0]) if name in inputs else None


def string_tensor(name: str, value: str | bytes) -> Any:
    data = value.encode() if isinstance(value, str) else value
    return pb.Tensor(name, np.array([data], dtype=np.object_))


def json_tensor(name: str, value: object) -> Any:
    return string_tensor(name, json.dumps(value))
