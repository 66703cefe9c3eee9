"""Bounds on the structure of a serialised ModelInferRequest, without decoding it.

A decoded message may take a hundred times its bytes: a map entry of six bytes becomes a node of a hash map, an empty
element of two a string. Contents of tensors may be as large as the message, everything else is bounded.
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from dataclasses import dataclass

from tritonclient.grpc import service_pb2

from cosmos_triton.serving.front.errors import invalid
from cosmos_triton.serving.front.limits import FIELDS, NAME_BYTES, STRUCTURE_BYTES

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10


def _number(message: type, field: str) -> int:
    return message.DESCRIPTOR.fields_by_name[field].number  # type: ignore[attr-defined]


_REQUEST, _INPUT = service_pb2.ModelInferRequest, service_pb2.ModelInferRequest.InferInputTensor
_CONTENTS = service_pb2.InferTensorContents
NAMES = {_number(_REQUEST, name): name for name in ("id", "model_name", "model_version")}
RAW = _number(_REQUEST, "raw_input_contents")
INPUTS, CONTENTS, STRINGS = (
    _number(_REQUEST, "inputs"),
    _number(_INPUT, "contents"),
    _number(_CONTENTS, "bytes_contents"),
)


@dataclass(slots=True)
class _Counts:
    fields: int = 0
    content_bytes: int = 0


def check_infer_request(message: bytes) -> None:
    """Raises Refusal where the message is malformed, or where its structure or a name is out of bounds."""
    counts = _Counts()
    for number, begin, end in _fields(message, 0, len(message), counts):
        if number in NAMES and end - begin > NAME_BYTES:
            raise invalid(NAMES[number], f"{end - begin} bytes", f"at most {NAME_BYTES} bytes")
        if number == RAW:
            counts.content_bytes += end - begin
        elif number == INPUTS:
            _check_input(message, begin, end, counts)
    if len(message) - counts.content_bytes > STRUCTURE_BYTES:
        size = f"{len(message) - counts.content_bytes} bytes beside the contents of tensors"
        raise invalid("request", size, f"at most {STRUCTURE_BYTES} bytes")


def _check_input(message: bytes, begin: int, end: int, counts: _Counts) -> None:
    for number, first, last in _fields(message, begin, end, counts):
        if number == CONTENTS:
            for inner, start, stop in _fields(message, first, last, counts):
                counts.content_bytes += stop - start if inner == STRINGS else 0


def _fields(message: bytes, begin: int, end: int, counts: _Counts) -> list[tuple[int, int, int]]:
    """Number, begin and end of each field between `begin` and `end`."""
    found = []
    while begin < end:
        counts.fields += 1
        if counts.fields > FIELDS:
            raise invalid("request", f"more than {FIELDS} fields", f"at most {FIELDS} fields")
        tag, begin = _varint(message, begin, end)
        wire = tag & 7
        if wire == VARINT:
            stop = _varint(message, begin, end)[1]
        elif wire == DELIMITED:
            size, begin = _varint(message, begin, end)
            stop = begin + size
        elif wire in (FIXED64, FIXED32):
            stop = begin + (8 if wire == FIXED64 else 4)
        else:
            raise _malformed()
        if stop > end:
            raise _malformed()
        found.append((tag >> 3, begin, stop))
        begin = stop
    return found


def _varint(message: bytes, begin: int, end: int) -> tuple[int, int]:
    value = 0
    for index in range(begin, min(end, begin + MAX_VARINT_BYTES)):
        value |= (message[index] & 0x7F) << 7 * (index - begin)
        if message[index] < 0x80:
            return value, index + 1
    raise _malformed()


def _malformed() -> Exception:
    return invalid("request", "bytes that are no ModelInferRequest", "a serialised message")
