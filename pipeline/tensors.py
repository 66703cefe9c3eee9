"""Tensors of a request as Python values, and Python values as tensors of a response."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from numpy.typing import NDArray

from cosmos_triton.runtime.errors import InvalidValue

Array = NDArray[Any]


def optional_array(request: Any, name: str) -> Array | None:
    """An input tensor, or None where it was left out."""
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def array(request: Any, name: str) -> Array:
    """An input tensor that the configuration insists on."""
    values = optional_array(request, name)
    assert values is not None, f"the server let a request without {name} through"
    return values


def scalar(request: Any, name: str) -> Any:
    """The only value of an input tensor as a Python number, or None where it was left out."""
    values = optional_array(request, name)
    return None if values is None else values.reshape(-1)[0].item()


def texts(request: Any, name: str) -> list[str]:
    """The strings of an input tensor; none where it was left out.

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
