"""Triton's generate extension: JSON whose members are inputs by name, and everything else request parameters.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
"""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import service_pb2

from cosmos_triton.serving.front.errors import invalid
from cosmos_triton.serving.front.infer_request import read_id, set_parameters, with_contents
from cosmos_triton.serving.front.json_text import read_object
from cosmos_triton.serving.front.tensors import element_count, pack

PARAMETERS = "parameters"  # an object, whose members count as those beside it


def read_generate_request(metadata: Any, version: str, body: bytes, *, parameters: dict[str, Any]) -> bytes:
    """A serialised ModelInferRequest.

    Args:
        metadata: a ModelMetadataResponse of the model.
        parameters: of the request, in addition.

    Raises:
        Refusal: INVALID_ARG.
    """
    header = read_object(body)
    message = service_pb2.ModelInferRequest(model_name=metadata.name, model_version=version, id=read_id(header))
    header.pop("id", None)
    nested = header.pop(PARAMETERS, {})
    members = header | (nested if isinstance(nested, dict) else {PARAMETERS: nested})
    shapes = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs}
    contents: list[bytes | memoryview] = []
    for name, value in members.items():
        if name not in shapes:
            continue
        datatype, shape = shapes[name]
        count = len(value) if isinstance(value, list) else 1
        shape = _fill(name, shape, count)
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        contents.append(pack(name, datatype, value, element_count(name, shape)))
    set_parameters(message.parameters, {name: value for name, value in members.items() if name not in shapes})
    set_parameters(message.parameters, parameters)
    return with_contents(message, contents)


def _fill(name: str, shape: list[int], count: int) -> list[int]:
    """The shape with its open dimensions: 1, except for the last of them, which has all elements."""
    filled, left = list(shape), count
    for dim in shape:
        if dim > 0:
            if left % dim:
                raise invalid(name, f"{count} elements", f"a multiple of {dim}")
            left //= dim
    for index in range(len(filled) - 1, -1, -1):
        if filled[index] < 0:
            filled[index], left = left, 1
    return filled
