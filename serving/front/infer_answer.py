"""Triton's answers over gRPC, as they look over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tritonclient.grpc import service_pb2

from cosmos_triton.serving.front import json_text
from cosmos_triton.serving.front.http_messages import JSON, Answer
from cosmos_triton.serving.front.infer_request import BinaryOutputs
from cosmos_triton.serving.front.tensors import unpack

OCTETS = "application/octet-stream"


def infer_answer(binary: BinaryOutputs, message: bytes) -> Answer:
    """JSON, then the raw contents of the outputs that are to be binary.

    Raises:
        Refusal: an output cannot be written as JSON.
    """
    response = service_pb2.ModelInferResponse.FromString(message)
    outputs: list[dict[str, Any]] = []
    contents: list[bytes] = []
    for output, raw in _outputs(response):
        value: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if parameters := read_parameters(output.parameters):
            value["parameters"] = parameters
        if output.name in binary:
            value["parameters"] = parameters | {"binary_data_size": len(raw)}
            contents.append(raw)
        else:
            value["data"] = unpack(output.name, output.datatype, raw)
        outputs.append(value)
    header = json_text.write({**_common(response), "outputs": outputs})
    if not contents:
        return Answer(200, [header], JSON)
    return Answer(200, [header, *contents], OCTETS, {"Inference-Header-Content-Length": str(len(header))})


def generated(response: Any) -> dict[str, Any]:
    """A response in the form of the generate extension: each output by its name, one element without a list.

    Args:
        response: a ModelInferResponse.
    """
    values = {output.name: unpack(output.name, output.datatype, raw) for output, raw in _outputs(response)}
    return {**_common(response), **{name: data[0] if len(data) == 1 else data for name, data in values.items()}}


def read_parameters(values: Any) -> dict[str, Any]:
    """A map of InferParameter as JSON values."""
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "string_param") for name, value in values.items()
    }


def _outputs(response: Any) -> Iterator[tuple[Any, bytes]]:
    yield from zip(response.outputs, response.raw_output_contents, strict=False)


def _common(response: Any) -> Mapping[str, Any]:
    """What the JSON of a response begins with. Without the marks that Triton puts on the messages of a stream."""
    common = {"id": response.id} if response.id else {}
    common |= {"model_name": response.model_name, "model_version": response.model_version}
    parameters = {
        name: value for name, value in read_parameters(response.parameters).items() if not name.startswith("triton_")
    }
    return common | ({"parameters": parameters} if parameters else {})
