"""JSON of clients, within bounds, and JSON for them."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from cosmos_triton.serving.front.errors import invalid
from cosmos_triton.serving.front.limits import STRUCTURE_BYTES


def read_object(text: bytes | memoryview) -> dict[str, Any]:
    """The object that `text` holds.

    Python's parser raises RecursionError at some hundred levels, long before its stack ends, and refuses integers of
    more than 4,300 digits. So its length is all there is to bound.

    Raises:
        Refusal: it is too long, too deep, or no object.
    """
    if len(text) > STRUCTURE_BYTES:
        raise invalid("JSON", f"{len(text)} bytes", f"at most {STRUCTURE_BYTES} bytes; binary_data_size for more")
    try:
        value = json.loads(bytes(text), parse_constant=_refuse)
    except RecursionError:
        raise invalid("JSON", "nested too deep", "at most some hundred levels") from None
    except ValueError:  # of the syntax, or of UTF-8
        raise invalid("JSON", "of wrong syntax", "one object") from None
    if not isinstance(value, dict):
        raise invalid("JSON", "no object", "one object")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def write(value: object) -> bytes:
    """Bytes that are not UTF-8 come out as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogateescape")


def error_body(message: str) -> bytes:
    return write({"error": message})
