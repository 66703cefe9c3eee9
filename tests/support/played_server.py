"""A server that is played in the process of the client, for tests of what the command line does around a request."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence

import pytest

from cosmos_triton.client import world_client
from cosmos_triton.client.errors import WorldError
from cosmos_triton.client.tensors import Tensor, bytes_of


class PlayedServer:
    """Answers every request with a video that names its input.

    Args:
        on_request: called with the visual input when the server works on it; what it raises is the answer.
    """

    def __init__(self, deployment: str = "4b") -> None:
        self.deployment = deployment
        self.inputs: list[bytes] = []
        self.prompts: list[str] = []
        self.frames: list[int] = []  # num_input_frames; 0 where there is none
        self.on_request: Callable[[bytes], None] = lambda _: None

    def infer(self, tensors: Sequence[Tensor], *, deadline: float | None) -> Generator[dict[str, bytes]]:
        raw = {tensor.name: tensor.raw for tensor in tensors}
        visual_input = bytes_of(raw["visual_input"])
        self.inputs.append(visual_input)
        self.prompts.append(bytes_of(raw.get("prompt", b"")).decode())
        self.frames.append(int.from_bytes(raw.get("num_input_frames", b""), "little"))
        self.on_request(visual_input)
        yield {"event": json.dumps({"stage": "ar_sampler", "done": 1, "total": 1}).encode()}
        report = {"outcome": "generated", "warnings": ["caf\u00e9"]}
        yield {"video": b"video of " + visual_input, "report": json.dumps(report).encode()}

    def model_parameters(self) -> dict[str, str]:
        return {"deployment": self.deployment}

    def close(self) -> None: ...

    def install(self, monkeypatch: pytest.MonkeyPatch) -> PlayedServer:
        monkeypatch.setattr(world_client, "_connect", lambda url, protocol: self)
        return self


def refuse(message: str) -> Callable[[bytes], None]:
    def answer(_: bytes) -> None:
        raise WorldError(message)

    return answer
