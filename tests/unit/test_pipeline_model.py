"""The entry models: every request is answered once, counted by its code, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmos_triton.guardrail.verdict import Verdict
from cosmos_triton.pipeline.errors import CODES, Cancelled, StageError
from cosmos_triton.pipeline.job import Job
from cosmos_triton.pipeline.orchestrator import Blocked
from cosmos_triton.pipeline.pipeline_model import PipelineModel
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.stage_settings import StageSettings
from support import fake_triton
from support.fake_triton import Request, counted

MODEL = "world_generation"
MAX_JOBS = 2
CLIP = {"visual_input": np.array([b"a clip"], np.object_)}


class Orchestrator:
    """`outcome` is the video, or what is raised instead."""

    def __init__(self) -> None:
        self.outcome: bytes | Exception = b"a video"
        self.seen: list[str] = []

    async def generate(self, job: Job) -> bytes:
        self.seen.append(job.id)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def orchestrator() -> Orchestrator:
    return Orchestrator()


@pytest.fixture
def model(tmp_path: Path, triton: object, orchestrator: Orchestrator) -> Iterator[PipelineModel]:
    settings = StageSettings(DEPLOYMENTS["tiny"], tmp_path, "cpu", jobs_dir=tmp_path, max_jobs=MAX_JOBS)
    parameters = {name: {"string_value": value} for name, value in settings.to_parameters().items()}
    model = PipelineModel()
    model.initialize(
        {"model_config": json.dumps({"name": MODEL, "parameters": parameters}), "model_repository": str(tmp_path)}
    )
    model.orchestrator = orchestrator  # type: ignore[assignment]
    yield model
    model.finalize()


def answered(model: PipelineModel, *requests: Request) -> list[Any]:
    """The response to each, which must be the only one."""
    model.execute(list(requests))
    assert all(request.sender.ended.wait(10) for request in requests)
    assert all(len(request.sender.responses) == 1 for request in requests)
    return [request.sender.responses[0] for request in requests]


def counts() -> dict[str, float]:
    by_code = {code: sum(m.value for m in counted("cosmos_requests", model=MODEL, code=code)) for code in CODES}
    for code, number in by_code.items():
        assert sum(len(m.observed) for m in counted("cosmos_request_seconds", model=MODEL, code=code)) == number
    return {code: number for code, number in by_code.items() if number}


OUTCOMES: list[tuple[Callable[[], bytes | Exception], str]] = [
    (lambda: b"a video", "OK"),
    (lambda: Blocked("video_blocked", Verdict.blocked("content_filter", "x", reason="y")), "OK"),
    (lambda: StageError("UNAVAILABLE", "full"), "UNAVAILABLE"),
    (lambda: StageError("INVALID_ARG", "visual_input: value x; accepted: y"), "INVALID_ARG"),
    (Cancelled, "CANCELLED"),
    (lambda: RuntimeError("boom"), "INTERNAL"),
]


@pytest.mark.parametrize(("outcome", "code"), OUTCOMES, ids=lambda value: value if isinstance(value, str) else "")
def test_an_answer_counts_by_its_code(
    model: PipelineModel, orchestrator: Orchestrator, tmp_path: Path, outcome: Callable[[], Any], code: str
) -> None:
    orchestrator.outcome = outcome()
    for number in range(1, 4):
        [response] = answered(model, Request(**CLIP))
        assert response.has_error() == (code != "OK")
        assert code == "OK" or response.error().code == code
        assert counts() == {code: number}
    assert model.jobs == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "inputs",
    [{}, CLIP | {"seed": np.array([-1])}, CLIP | {"prompt": np.array([b"\xff"], np.object_)}],
    ids=["nothing", "seed", "prompt"],
)
def test_a_request_that_is_not_admitted_counts_too(
    model: PipelineModel, tmp_path: Path, inputs: dict[str, np.ndarray]
) -> None:
    bad, good = answered(model, Request(**inputs), Request(**CLIP))
    assert bad.error().code == "INVALID_ARG"
    assert not good.has_error()
    assert counts() == {"INVALID_ARG": 1, "OK": 1}
    assert list(tmp_path.iterdir()) == []


def test_one_request_too_many_is_unavailable(model: PipelineModel) -> None:
    model.jobs = {str(number): None for number in range(MAX_JOBS)}  # type: ignore[misc]
    [response] = answered(model, Request(**CLIP))
    assert response.error().code == "UNAVAILABLE"
    assert counts() == {"UNAVAILABLE": 1}


def test_report_and_log_have_the_jobs_name_and_not_its_id(model: PipelineModel, orchestrator: Orchestrator) -> None:
    [response] = answered(model, Request(**CLIP))
    outputs = {tensor.name(): tensor.as_numpy()[0] for tensor in response.output_tensors()}
    assert outputs["video"] == b"a video"
    name, [job] = json.loads(outputs["report"])["job"], orchestrator.seen
    log = "\n".join(fake_triton.Logger.lines)
    assert f"{MODEL} {name}: started" in log
    assert f"{MODEL} {name}: generated after" in log
    assert job not in log + outputs["report"].decode()


@pytest.mark.parametrize("inputs", [CLIP, {}], ids=["admitted", "refused"])
def test_a_request_id_of_any_length_and_content_is_one_short_line(
    model: PipelineModel, inputs: dict[str, np.ndarray]
) -> None:
    request = Request(**inputs)
    request.request_id = lambda: "a\nforged line" * 100_000  # type: ignore[method-assign]
    answered(model, request)
    assert all("\n" not in line and len(line) < 400 for line in fake_triton.Logger.lines)
    assert any("a\\nforged" in line for line in fake_triton.Logger.lines)
