"""The footprint of each network: bytes and operations that the memory plan is made from.

The numbers are in footprints.json, which `python -m cosmos_triton.planning.footprint_count` writes by running every
network on meta tensors. A test holds them to that and to the released files. Reading them takes no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cosmos_triton.runtime.deployments import PRESET_OF, Deployment

FILE = Path(__file__).with_name("footprints.json")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one network in its precision on a GPU, and the work of one run.

    weights: parameters and buffers.
    activations: alive at once in one run, beside the weights: for one clip or prompt (33 frames in the guardrails).
    flops: of that run.
    block: the largest of the `blocks` that can be streamed.
    kv_slot: of the KV cache, for one clip of `clip_tokens`.
    weights_8bit, block_8bit, activations_8bit: with 8-bit weights, for networks that can have them. A GEMM of many
        rows dequantises one matrix at a time to bf16.
    weights_fp8, block_fp8, activations_fp8: with fp8 products, for networks that can have them.
    """

    weights: int
    activations: int
    flops: int
    block: int = 0
    blocks: int = 0
    kv_slot: int = 0
    clip_tokens: int = 0
    weights_8bit: int = 0
    block_8bit: int = 0
    activations_8bit: int = 0
    weights_fp8: int = 0
    block_fp8: int = 0
    activations_fp8: int = 0


def read_footprints(file: Path = FILE) -> dict[str, Footprint]:
    """Every network of every deployment, by its key.

    Raises:
        TypeError: an entry has an unknown field, or lacks one.
        ValueError: a value is not a whole number.
    """
    footprints = {}
    for key, numbers in json.loads(file.read_text()).items():
        if wrong := [name for name, value in numbers.items() if type(value) is not int]:
            raise ValueError(f"{file}: {key}: {wrong[0]}: value {numbers[wrong[0]]!r}; accepted: a whole number")
        footprints[key] = Footprint(**numbers)
    return footprints


def as_json(footprints: Mapping[str, Footprint]) -> str:
    """The content of footprints.json: what differs from a field's default."""
    defaults = {field.name: field.default for field in fields(Footprint)}
    rows = {
        key: {name: value for name, value in asdict(footprint).items() if value != defaults[name]}
        for key, footprint in footprints.items()
    }
    return json.dumps(rows, indent=2) + "\n"


FOOTPRINTS = read_footprints()


def footprint_key(deployment: Deployment, kind: str) -> str:
    """The key of a deployment's network of one kind in the table of footprints."""
    return f"{kind} {PRESET_OF[kind](deployment)}"
