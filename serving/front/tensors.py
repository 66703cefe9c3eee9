"""Tensors between JSON and Triton's raw contents: little-endian numbers in row-major order, BYTES with lengths."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

from cosmos_triton.serving.front.errors import invalid
from cosmos_triton.serving.front.limits import BODY_BYTES, JSON_NUMBERS

BYTES = "BYTES"
BOOL = "BOOL"
# Of `struct`. FP16 and BF16 have no form in JSON.
FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
MAX_DIMS = 16


def element_count(name: str, shape: object) -> int:
    """The number of elements of a tensor of this shape.

    Raises:
        Refusal: the shape is not a list of dimensions, or holds more elements than a body has bytes.
    """
    dims = shape if isinstance(shape, list) else [None]
    if len(dims) > MAX_DIMS or not all(type(dim) is int and 0 <= dim <= BODY_BYTES for dim in dims):
        raise invalid(f"{name}.shape", "of another form", f"up to {MAX_DIMS} dimensions of 0 to {BODY_BYTES}")
    count = math.prod(dims)
    if count > BODY_BYTES:
        raise invalid(f"{name}.shape", f"{count} elements", f"at most {BODY_BYTES} elements")
    return count


def pack(name: str, datatype: str, data: object, count: int) -> bytes:
    """Raw contents of JSON `data`: one value, or values in lists, nested or not.

    Raises:
        Refusal: a value is of another type or out of range, or there are not `count` of them.
    """
    values = list(_flatten(data))
    if len(values) != count:
        raise invalid(f"{name}.data", f"{len(values)} elements", f"{count} elements, as its shape says")
    if datatype == BYTES:
        return b"".join(_pack_text(name, value) for value in values)
    if datatype not in FORMATS:
        raise invalid(f"{name}.datatype", "one without a form in JSON", f"{', '.join([BYTES, *FORMATS])}")
    if not all(_is_of(datatype, value) for value in values):
        raise invalid(f"{name}.data", "elements of another type", f"{datatype}")
    try:
        return struct.pack(f"<{count}{FORMATS[datatype]}", *values)
    except (struct.error, OverflowError):
        raise invalid(f"{name}.data", "elements out of range", f"{datatype}") from None


def _is_of(datatype: str, value: object) -> bool:
    if datatype == BOOL:
        return isinstance(value, bool)
    is_number = isinstance(value, (int, float) if datatype.startswith("FP") else int)
    return is_number and not isinstance(value, bool)


def _flatten(data: object) -> Iterator[object]:
    """The values in nested lists, in order. Their depth is bounded by the JSON parser's."""
    levels = [iter([data])]
    while levels:
        for value in levels[-1]:
            if isinstance(value, list):
                levels.append(iter(value))
                break
            yield value
        else:
            levels.pop()


def _pack_text(name: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise invalid(f"{name}.data", "elements of another type", "strings")
    try:
        content = value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise invalid(f"{name}.data", "a string that is not Unicode", "strings") from None
    return struct.pack("<I", len(content)) + content


def unpack(name: str, datatype: str, raw: bytes) -> list[Any]:
    """The values of raw contents for JSON. A BYTES element that is not UTF-8 keeps its bytes as surrogates.

    Raises:
        Refusal: the datatype has no form in JSON, or there are too many values for it.
    """
    if datatype == BYTES:
        return _unpack_texts(raw)
    if datatype not in FORMATS:
        raise invalid(f"{name}.binary_data", f"false for {datatype}", "true")
    count = len(raw) // struct.calcsize(FORMATS[datatype])
    if count > JSON_NUMBERS:
        raise invalid(f"{name}.binary_data", f"false for {count} numbers", f"true beyond {JSON_NUMBERS} numbers")
    return list(struct.unpack(f"<{count}{FORMATS[datatype]}", raw))


def _unpack_texts(raw: bytes) -> list[str]:
    texts, begin = [], 0
    while begin < len(raw):
        (size,) = struct.unpack_from("<I", raw, begin)
        texts.append(raw[begin + 4 : begin + 4 + size].decode(errors="surrogateescape"))
        begin += 4 + size
    return texts
