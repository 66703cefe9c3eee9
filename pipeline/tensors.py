"""Input tensors of a request as Python values, and output tensors from Python values."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from numpy.typing import NDArray

from cosmos_triton.runtime.errors import InvalidValue

Array = NDArray[Any]


def optional_array(request: Any, name: str) -> Array | None:
    """An optional input tensor, None if it was not given."""
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def array(request: Any, name: str) -> Array:
    """An input tensor that the model's configuration requires."""
    values = optional_array(request, name)
    assert values is not None, f"Triton accepted a request without {name}"
    return values


def scalar(request: Any, name: str) -> Any:
    """The value of an optional input tensor of one element as a Python number, None if it was not given."""
    values = optional_array(request, name)
    return None if values is None else values.reshape(-1)[0].item()


def texts(request: Any, name: str) -> list[str]:
    """The strings of an optional input tensor, empty if it was not given.

    Raises:
        InvalidValue: one is not UTF-8.
    """
    values = optional_array(request, name)
    try:
        return [] if values is None else [bytes(value).decode() for value in values.reshape(-1)]
    except UnicodeDecodeError as error:
        raise InvalidValue(name, f"bytes that are not UTF-8 ({error.reason})", "text in UTF-8") from None


def string_tensor(name: str, value: str | bytes) -> Any:
    data = value.encode() if isinstance(value, str) else value
    return pb.Tensor(name, np.array([data], dtype=np.object_))


def json_tensor(name: str, value: object) -> Any:
    return string_tensor(name, json.dumps(value))
