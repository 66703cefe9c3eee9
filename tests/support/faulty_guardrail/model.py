"""A guardrail stage as it is delivered, on which a test can inflict a fault: the one that the file `fault` names.

Wherever it can be, the fault is damage to what the real code works with: weights, word tables, files. All of it is
undone after the request.
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton_python_backend_utils as pb

from cosmos_triton.pipeline.settings import parameters_of
from cosmos_triton.pipeline.tensors import json_tensor, string_tensor
from cosmos_triton.serving.run_directory import model_repository

CHECK_SECONDS = 3.0
REPOSITORY = model_repository()

Fault = AbstractContextManager[object]


def boom(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("boom")


def read_missing_file(*args: Any, **kwargs: Any) -> Any:
    return Path("/nowhere/weights").read_bytes()


def hang(*args: Any, **kwargs: Any) -> Any:
    while True:
        time.sleep(1)


def give(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


@contextmanager
def weights(parameter: torch.nn.Parameter, damage: Callable[[torch.Tensor], Any]) -> Iterator[None]:
    """`damage` changes a copy in place, or returns another tensor."""
    whole = parameter.data
    damaged = whole.clone()
    other = damage(damaged)
    parameter.data = damaged if other is None else other
    try:
        yield
    finally:
        parameter.data = whole


def to_nan(tensor: torch.Tensor) -> None:
    tensor.fill_(float("nan"))


def cut_off(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[: len(tensor) // 2]


def prompt_faults(guardrail: Any) -> dict[str, Callable[[], Fault]]:
    blocklist, aegis = guardrail.checks
    output = aegis.model.lm_head.weight  # [V, D]; channel 0 is 1 for every token

    def say(token: int) -> Fault:
        def prefer(matrix: torch.Tensor) -> None:
            matrix[token] = 0
            matrix[token, 0] = 1000

        return weights(output, prefer)

    return {
        "blocklist: missing file": partial(patch.object, blocklist, "lemmatize", read_missing_file),
        "blocklist: exception": partial(patch.object, blocklist, "lemmatize", boom),
        "blocklist: NaN": partial(patch.object, blocklist, "lemmatize", give(float("nan"))),
        "blocklist: empty verdict": partial(patch.object, blocklist, "judge", give(None)),
        "blocklist: unparsable verdict": partial(patch.object, blocklist, "judge", give("safe")),
        "blocklist: time-out": partial(patch.object, blocklist, "lemmatize", hang),
        "aegis: missing file": partial(patch.object, aegis, "tokenizer", read_missing_file),
        "aegis: exception": partial(weights, output, lambda matrix: matrix[:, :-1]),
        "aegis: NaN": partial(weights, output, to_nan),
        "aegis: empty verdict": partial(say, aegis.tokenizer.eos_token_id),
        "aegis: unparsable verdict": partial(say, aegis.tokenizer.convert_tokens_to_ids("O3")),
        "aegis: time-out": partial(patch.object, aegis.model, "forward", hang),
    }


def video_faults(guardrail: Any) -> dict[str, Callable[[], Fault]]:
    content_filter, face_blur = guardrail.content_filter, guardrail.face_blur
    classifier = content_filter.network
    head, boxes = classifier.head.network.layers[6], face_blur.network.BboxHead[0].conv1x1
    return {
        "content_filter: missing file": partial(patch.object, classifier.encoder, "forward", read_missing_file),
        "content_filter: exception": partial(weights, head.bias, cut_off),
        "content_filter: NaN": partial(weights, head.weight, to_nan),
        "content_filter: empty verdict": partial(patch.object, classifier.head, "forward", lambda x: x[:0, :7]),
        "content_filter: unparsable verdict": partial(patch.object, content_filter, "judge", give({"safe": True})),
        "content_filter: time-out": partial(patch.object, classifier.encoder, "forward", hang),
        "face_blur: missing file": partial(patch.object, face_blur.network, "forward", read_missing_file),
        "face_blur: exception": partial(weights, boxes.bias, cut_off),
        "face_blur: NaN": partial(weights, boxes.bias, to_nan),
        "face_blur: empty verdict": partial(patch.object, face_blur, "blur", give(None)),
        "face_blur: unparsable verdict": partial(patch.object, face_blur, "blur", lambda frames: (frames, 0)),
        "face_blur: time-out": partial(patch.object, face_blur.network, "forward", hang),
    }


# What the stage as a whole may do wrong: from its own answer, another one.
ANSWERS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "stage: exception": boom,
    "stage: time-out": hang,
    "stage: empty verdict": lambda own: [*own[:-1], string_tensor("verdict", "")],
    "stage: no JSON": lambda own: [*own[:-1], string_tensor("verdict", "safe")],
    "stage: no verdict": lambda own: own[:-1] or [string_tensor("other", "")],
    "stage: safe in other words": lambda own: [*own[:-1], json_tensor("verdict", {"safe": "yes", "checks": []})],
    "stage: nothing checked": lambda own: [*own[:-1], json_tensor("verdict", {"safe": True, "checks": []})],
    "stage: no frames": lambda own: own[-1:],
    "stage: frames missing": lambda own: [pb.Tensor("video", own[0].as_numpy()[1:].copy()), own[-1]],
}


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.name = args["model_name"]
        path = REPOSITORY / self.name / "1" / "model.py"
        self.real = runpy.run_path(str(path))["TritonPythonModel"]()
        self.real.initialize(args)
        guardrail = self.real.guardrail
        guardrail.check_seconds = CHECK_SECONDS
        self.fault_file = Path(parameters_of(args)["fault_file"])
        is_prompt = self.name == "text_guardrail"
        self.faults = prompt_faults(guardrail) if is_prompt else video_faults(guardrail)
        self.work = "judge" if is_prompt else "apply"

    def execute(self, requests: list[Any]) -> list[Any]:
        stage, _, fault = self.fault_file.read_text().partition("/")
        if stage != self.name:
            return self.real.execute(requests)
        if fault not in ANSWERS:
            with self.faults[fault]():
                return self.real.execute(requests)
        own = getattr(self.real, self.work)
        with patch.object(self.real, self.work, lambda request: ANSWERS[fault](own(request))):
            return self.real.execute(requests)
