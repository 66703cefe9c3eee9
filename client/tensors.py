"""The public tensors of `world_generation` in Triton's binary format, which gRPC and HTTP share.

Every public tensor has shape [1]: a little-endian number, or for BYTES a length and the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from cosmos_triton.client.errors import InvalidInput

MODEL = "world_generation"
STREAM_MODEL = "world_generation_stream"  # the same pipeline; sends events before the result

_DATATYPES = {
    "visual_input": "BYTES",
    "prompt": "BYTES",
    "num_input_frames": "INT32",
    "temperature": "FP32",
    "top_p": "FP32",
    "seed": "INT64",
    "disable_diffusion_decoder": "BOOL",
}
_FORMATS = {"INT32": "<i", "INT64": "<q", "FP32": "<f", "BOOL": "<?"}


class Parameters(TypedDict, total=False):
    """Optional parameters of a generation. The server fills in defaults for those that are missing or None.

    prompt: the text; required by video2world deployments, not accepted by base deployments
    num_input_frames: 1 or 9, the last frames of a clip; by default 1 for an image and 9 for a clip
    temperature: of token sampling; 0 is greedy; by default 1.0
    top_p: of nucleus sampling, above 0, at most 1; the default depends on the deployment
    seed: the same seed and input give the same video; by default 0
    disable_diffusion_decoder: decode with the discrete tokenizer, which is faster and coarser; by default False
    """

    prompt: str | None
    num_input_frames: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    disable_diffusion_decoder: bool | None


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    datatype: str
    raw: bytes


def request_tensors(visual_input: bytes, parameters: Mapping[str, object]) -> list[Tensor]:
    """The tensors of one request, without parameters that are None.

    Raises:
        InvalidInput: a value does not fit its tensor's type.
        TypeError: a parameter does not exist.
    """
    unknown = parameters.keys() - Parameters.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown parameters: {', '.join(sorted(unknown))}")
    given = {name: value for name, value in parameters.items() if value is not None}
    return [_tensor(name, value) for name, value in {"visual_input": visual_input, **given}.items()]


def _tensor(name: str, value: object) -> Tensor:
    datatype = _DATATYPES[name]
    try:
        if datatype == "BYTES":
            content = value.encode() if isinstance(value, str) else bytes(value)  # type: ignore[call-overload]
            return Tensor(name, datatype, struct.pack("<I", len(content)) + content)
        return Tensor(name, datatype, struct.pack(_FORMATS[datatype], value))
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise InvalidInput(f"{name}: value {value!r}; accepted: what fits a {datatype} tensor ({error})") from None


def bytes_of(raw: bytes) -> bytes:
    """The content of a BYTES tensor of shape [1], or b"" of shape [0]."""
    return raw[4:]
