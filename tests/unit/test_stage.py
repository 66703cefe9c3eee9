"""A stage's answers: for whom it works, that one request's failure is its own, and what the metrics count."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmos_triton.pipeline.errors import CODES, Cancelled, StageError
from cosmos_triton.pipeline.job_files import JOB, JobFiles, label, new_job_id
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.stage import SENT, Stage, StageCall
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.stages import STAGES
from support import fake_triton
from support.fake_triton import InferenceResponse, Request, Tensor, counted

TINY = DEPLOYMENTS["tiny-video2world"]
WORKING = [stage for stage, spec in STAGES.items() if not spec.is_entry]
TEXT = {"prompt": np.array([b"a tractor"], np.object_)}
BAD_TEXT = {"prompt": np.array([b"\xff"], np.object_)}
UNREADABLE = ["{", "[]", "5", '"job"', "[" * 4000, json.dumps({JOB: "a" * 5000}), "\ud800"]


@pytest.fixture
def jobs(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path)


@pytest.fixture
def job(jobs: JobFiles) -> str:
    job = new_job_id()
    jobs.begin(job)
    return job


@pytest.fixture
def make(jobs: JobFiles, triton: object) -> Callable[[str], Stage]:
    def make(name: str) -> Stage:
        settings: Any = Settings(name, TINY, Path(), "cpu", jobs, parameters=None, exported=None)  # type: ignore[arg-type]
        return Stage(settings)

    return make


@pytest.fixture
def stage(make: Callable[[str], Stage]) -> Stage:
    return make("text_guardrail")


def answer(call: StageCall) -> list[Any]:
    return [Tensor("verdict", call.inputs["prompt"])]


def never(call: StageCall) -> list[Any]:
    raise AssertionError("the stage worked on it")


def error_of(response: InferenceResponse) -> tuple[str, str]:
    assert response.failure
    return response.failure.code, response.failure.message()


def counts(model: str = "text_guardrail") -> dict[str, float]:
    """Requests by code, of those that there are any of."""
    by_code = {code: sum(m.value for m in counted("cosmos_requests", model=model, code=code)) for code in CODES}
    for code, number in by_code.items():
        assert sum(len(m.observed) for m in counted("cosmos_request_seconds", model=model, code=code)) == number
    return {code: number for code, number in by_code.items() if number}


@pytest.mark.parametrize("name", WORKING)
def test_no_stage_looks_at_the_tensors_of_a_request_without_a_job(make: Callable[[str], Stage], name: str) -> None:
    """Whatever they are, and whatever the request says instead of an id."""
    accepted = STAGES[name].inputs(TINY)
    tensors = {
        input: np.zeros(tuple(sizes[0] for sizes in limit.shape), limit.dtype) for input, limit in accepted.items()
    }
    parameters: list[Any] = [{}, {JOB: ""}, {JOB: 5}, {JOB: new_job_id()}, {JOB: "../jobs"}, *UNREADABLE]
    requests = [Request(given, **tensors) for given in parameters]
    for response in make(name).answer_each(requests, never):
        code, message = error_of(response)
        assert code == "INVALID_ARG"
        assert message.startswith(("[INVALID_ARG] job: value ", "[INVALID_ARG] parameters: value "))
    assert not any(request.inputs_read for request in requests)
    assert counts(name) == {"INVALID_ARG": len(requests)}


def test_a_job_that_has_ended_is_none(stage: Stage, jobs: JobFiles, job: str) -> None:
    request = Request({JOB: job}, **TEXT)
    assert not stage.answer_each([request], answer)[0].has_error()
    jobs.end(job)
    [response] = stage.answer_each([request], never)
    assert error_of(response)[0] == "INVALID_ARG"


@pytest.mark.parametrize("name", WORKING)
def test_a_stage_works_on_what_it_accepts_alone(make: Callable[[str], Stage], job: str, name: str) -> None:
    for input, limit in STAGES[name].inputs(TINY).items():
        shape = tuple(sizes[0] for sizes in limit.shape)
        wrong = [np.zeros((*shape, 1), limit.dtype), np.zeros(shape, np.float16), np.zeros(0, limit.dtype)]
        for response in make(name).answer_each([Request({JOB: job}, **{input: tensor}) for tensor in wrong], never):
            code, message = error_of(response)
            assert code == "INVALID_ARG"
            assert message.startswith(f"[INVALID_ARG] {input}: value ")
    [response] = make(name).answer_each([Request({JOB: job}, other=np.zeros(1))], never)
    assert error_of(response)[1].startswith("[INVALID_ARG] other: value given; accepted: ")


def test_answers_are_in_the_order_of_the_requests(stage: Stage, job: str) -> None:
    texts = [f"text {number}".encode() for number in range(5)]
    requests = [Request({JOB: job}, prompt=np.array([text], np.object_)) for text in texts]
    requests[2] = Request({JOB: job}, **BAD_TEXT)
    requests[4] = Request({}, **TEXT)
    batches: list[int] = []

    def work(calls: list[StageCall]) -> list[list[Any]]:
        batches.append(len(calls))
        return [answer(call) for call in calls]

    for responses in (stage.answer_each(requests, answer), stage.answer_together(requests, work)):
        good = [response.tensors[0].as_numpy()[0] for response in responses if not response.has_error()]
        assert good == [texts[0], texts[1], texts[3]]
        assert [response.has_error() for response in responses] == [False, False, True, False, True]
    assert batches == [3]
    assert counts() == {"OK": 6, "INVALID_ARG": 4}


def test_nothing_is_computed_for_a_batch_that_is_refused(stage: Stage, job: str) -> None:
    requests = [Request({}, **TEXT), Request({JOB: job}, **BAD_TEXT)]
    for response in stage.answer_together(requests, lambda calls: [never(call) for call in calls]):
        assert error_of(response)[0] == "INVALID_ARG"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("boom"), "INTERNAL", "[INTERNAL] RuntimeError: boom"),
        (InvalidValue("metadata", "[]", "an object"), "INVALID_ARG", "[INVALID_ARG] metadata: value []; accepted: an"),
        (StageError("UNAVAILABLE", "the queue is full"), "UNAVAILABLE", "[UNAVAILABLE] the queue is full"),
        (Cancelled(), "CANCELLED", "[CANCELLED] the request was cancelled"),
    ],
)
def test_a_failure_has_its_code_in_response_message_log_and_metrics(
    stage: Stage, job: str, error: Exception, code: str, message: str
) -> None:
    def fail(call: StageCall) -> list[Any]:
        raise error

    def fail_together(calls: list[StageCall]) -> list[list[Any]]:
        raise error

    request = Request({JOB: job}, **TEXT)
    responses = stage.answer_each([request], fail) + stage.answer_together([request, request], fail_together)
    for response in responses:
        assert error_of(response)[0] == code
        assert error_of(response)[1].startswith(message)
    assert counts() == {code: 3}
    lines = fake_triton.Logger.lines
    assert [line.startswith(f"text_guardrail {label(job)}: {message}") for line in lines] == [True] * 3
    assert job not in "".join(lines)


def test_work_that_returns_too_little_fails_all(stage: Stage, job: str) -> None:
    requests = [Request({JOB: job}, **TEXT)] * 2
    for response in stage.answer_together(requests, lambda calls: [answer(calls[0])]):
        assert error_of(response)[0] == "INTERNAL"


def test_a_client_cannot_write_into_the_log(stage: Stage) -> None:
    request = Request({JOB: "a\nforged line"}, **TEXT)
    request.request_id = lambda: "b\nforged line" * 100_000  # type: ignore[method-assign]
    stage.answer_each([request], never)
    [line] = fake_triton.Logger.lines
    assert "forged" not in line
    assert len(line) < 250


def test_durations_are_of_the_work_and_of_the_wait(stage: Stage, job: str) -> None:
    sent = time.monotonic_ns() - 3_000_000_000

    def work(call: StageCall) -> list[Any]:
        call.began -= 2  # seconds ago
        return answer(call)

    requests = [Request({JOB: job, SENT: sent}, **TEXT), Request({JOB: job}, **TEXT)]
    stage.answer_each(requests, work)
    [seconds] = counted("cosmos_request_seconds", model="text_guardrail", code="OK")
    assert [2 <= value < 3 for value in seconds.observed] == [True, True]
    [waited] = counted("cosmos_request_wait_seconds", model="text_guardrail")
    assert [3 <= value < 4 for value in waited.observed] == [True]  # the other one's is not known


def test_a_call_that_ends_nothing_is_not_counted(stage: Stage, job: str) -> None:
    def submit(call: StageCall) -> list[Any]:
        call.is_counted = False
        return []

    [response] = stage.answer_each([Request({JOB: job}, **TEXT)], submit)
    assert not response.has_error()
    assert counts() == {}
