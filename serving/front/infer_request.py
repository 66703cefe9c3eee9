"""Requests for inference over HTTP, as messages of gRPC.

KServe v2 with Triton's binary tensors: the body is JSON, then the raw contents of the inputs that have none in it.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from cosmos_triton.serving.front.errors import invalid
from cosmos_triton.serving.front.json_text import read_object
from cosmos_triton.serving.front.limits import FIELDS, NAME_BYTES
from cosmos_triton.serving.front.tensors import BYTES, FORMATS, element_count, pack

HEADER_LENGTH = "inference-header-content-length"
DATATYPES = {BYTES, *FORMATS, "FP16", "BF16"}
BINARY_SIZE, BINARY, BINARY_OUTPUT = "binary_data_size", "binary_data", "binary_data_output"
RAW_CONTENTS = service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
MAX_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True)
class BinaryOutputs:
    """Which outputs the client wants as raw contents. `default` holds for those that the request does not name."""

    by_name: Mapping[str, bool]
    default: bool

    def __contains__(self, name: str) -> bool:
        return self.by_name.get(name, self.default)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """message: a serialised ModelInferRequest."""

    message: bytes
    outputs: BinaryOutputs


def read_infer_request(model: str, version: str, header_length: str | None, body: bytes) -> InferRequest:
    """The request of a body.

    Args:
        header_length: the bytes of JSON in front of the binary tensors; None when there are none.

    Raises:
        Refusal: INVALID_ARG.
    """
    size = _header_size(header_length, len(body))
    header, content = read_object(memoryview(body)[:size]), memoryview(body)[size:]
    message = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=read_id(header))
    parameters = _object(header, "parameters")
    binary_default = _flag(parameters.pop(BINARY_OUTPUT, False), BINARY_OUTPUT)
    set_parameters(message.parameters, parameters)
    contents: list[bytes | memoryview] = []
    for value in _objects(header, "inputs"):
        raw = _read_input(message, value, content)
        contents.append(raw)
        content = content[len(raw) :] if isinstance(raw, memoryview) else content
    if content:
        raise invalid("body", f"{len(content)} bytes behind the last tensor", "the tensors' bytes alone")
    binary = dict(_read_output(message, value) for value in _objects(header, "outputs"))
    return InferRequest(with_contents(message, contents), BinaryOutputs(binary, binary_default))


def with_contents(message: Any, contents: list[bytes | memoryview]) -> bytes:
    """A ModelInferRequest serialised with raw contents, which are copied once."""
    parts: list[bytes | memoryview] = [message.SerializeToString()]
    for raw in contents:
        parts += [_varint(RAW_CONTENTS << 3 | 2), _varint(len(raw)), raw]
    return b"".join(parts)


def read_id(header: Mapping[str, Any]) -> str:
    name = _text(header.get("id", ""), "id")
    if len(name.encode()) > NAME_BYTES:
        raise invalid("id", f"{len(name)} characters", f"at most {NAME_BYTES} bytes")
    return name


def set_parameters(target: Any, values: Mapping[str, Any]) -> None:
    """Put JSON values into a map of InferParameter."""
    if len(values) > FIELDS:
        raise invalid("parameters", f"{len(values)} of them", f"at most {FIELDS}")
    for name, value in values.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}.get(type(value))
        if kind is None or (kind == "int64_param" and abs(value) > MAX_INT64):
            raise invalid("parameters", "of another type", "strings, numbers of 64 bits and booleans")
        _text(name, "parameters")
        if kind == "string_param":
            _text(value, "parameters")
        setattr(target[name], kind, value)


def _header_size(header_length: str | None, body_bytes: int) -> int:
    if header_length is None:
        return body_bytes
    is_size = header_length.isascii() and header_length.isdigit() and len(header_length) <= 10
    if not is_size or not 0 < int(header_length) <= body_bytes:
        accepted = f"1 to {body_bytes}, the bytes of JSON in the body"
        raise invalid("Inference-Header-Content-Length", "of another form", accepted)
    return int(header_length)


def _read_input(message: Any, value: dict[str, Any], content: memoryview) -> bytes | memoryview:
    """Add the input to the message; its raw contents, which are a part of `content` when they are binary."""
    name = _text(value.get("name"), "inputs.name")
    label = name if len(name) <= NAME_BYTES else "input"
    datatype, shape = value.get("datatype"), value.get("shape")
    if datatype not in DATATYPES:
        raise invalid(f"{label}.datatype", "unknown", ", ".join(sorted(DATATYPES)))
    count = element_count(label, shape)
    parameters = _object(value, "parameters")
    size = parameters.pop(BINARY_SIZE, None)
    if any(key.startswith("shared_memory") for key in parameters):
        raise invalid(f"{label}.parameters", "shared memory", "tensors in the request")
    set_parameters(message.inputs.add(name=name, datatype=datatype, shape=shape).parameters, parameters)
    if size is None:
        return pack(label, datatype, value.get("data"), count)
    if type(size) is not int or not 0 <= size <= len(content):
        raise invalid(f"{label}.{BINARY_SIZE}", "of another form", f"0 to {len(content)}, the bytes left in the body")
    return content[:size]


def _read_output(message: Any, value: dict[str, Any]) -> tuple[str, bool]:
    """Add the output to the message; its name, and whether it is to be binary."""
    name = _text(value.get("name"), "outputs.name")
    parameters = _object(value, "parameters")
    is_binary = _flag(parameters.pop(BINARY, False), BINARY)
    if any(key.startswith("shared_memory") for key in parameters):
        raise invalid("outputs.parameters", "shared memory", "tensors in the answer")
    set_parameters(message.outputs.add(name=name).parameters, parameters)
    return name, is_binary


def _object(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name, {})
    if not isinstance(found, dict):
        raise invalid(name, "no object", "an object")
    return dict(found)


def _objects(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = value.get(name, [])
    if not isinstance(found, list) or len(found) > FIELDS or not all(isinstance(each, dict) for each in found):
        raise invalid(name, "of another form", f"a list of up to {FIELDS} objects")
    return found


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or (not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise invalid(name, "missing or of another form", "a string")
    return value


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(name, "of another form", "true or false")
    return value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
