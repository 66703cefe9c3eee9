"""A stage as the pipeline sees it: what is sent, what a failure becomes, and that a dead process is not waited for."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmos_triton.pipeline.errors import Cancelled, StageError
from cosmos_triton.pipeline.job import Job
from cosmos_triton.pipeline.job_files import JOB, JobFiles, Progress
from cosmos_triton.pipeline.metrics import RequestMetrics
from cosmos_triton.pipeline.stage import SENT
from cosmos_triton.pipeline.stage_calls import StageCalls
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.generation_request import GenerationRequest
from support.fake_triton import InferenceRequest, InferenceResponse, Sender, Tensor, TritonError, counted

TINY = DEPLOYMENTS["tiny"]
INPUTS = {"frames": np.zeros(3, np.uint8)}


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path)


@pytest.fixture
def calls(files: JobFiles, triton: object) -> StageCalls:
    return StageCalls(files, RequestMetrics(), max_jobs=2)


@pytest.fixture
def job(files: JobFiles) -> Job:
    job = Job(
        pipeline="world_generation",
        deployment=TINY,
        request=GenerationRequest.checked(TINY),
        visual_input=np.array([b""], np.object_),
        sender=Sender(),
        streams=False,
    )
    files.begin(job.id)
    return job


@pytest.fixture
def dead() -> Iterator[int]:
    """The process id of a zombie: it has ended, and nobody has waited for it."""
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process.pid
    process.wait()


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[InferenceRequest], Any]) -> list[dict[str, Any]]:
    """The requests that are made."""
    made: list[dict[str, Any]] = []

    def note(request: InferenceRequest) -> Any:
        made.append(request.arguments)
        return answer(request)

    monkeypatch.setattr(InferenceRequest, "answer", note, raising=False)
    return made


def failing(message: str) -> Callable[[InferenceRequest], InferenceResponse]:
    return lambda request: InferenceResponse(error=TritonError(message))


def test_a_stage_is_told_the_job_and_when_it_was_called(
    calls: StageCalls, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = answering(monkeypatch, lambda request: InferenceResponse([Tensor("tokens", np.ones(2))]))
    outputs = asyncio.run(calls.call(job, "video_tokenizer_encoder", INPUTS))
    assert outputs["tokens"].tolist() == [1, 1]
    assert made[0]["parameters"][JOB] == job.id
    assert 0 <= time.monotonic_ns() - made[0]["parameters"][SENT] < 10e9
    assert made[0]["request_id"] == job.label  # which the server may log
    assert job.id not in str({key: value for key, value in made[0].items() if key != "parameters"})
    assert job.id not in str(job.report)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("Stub process 'text_encoder_0_0' is not healthy.", "INTERNAL"),
        ("Exceeds maximum queue size", "UNAVAILABLE"),
        ("Model 'text_encoder' is not ready.", "UNAVAILABLE"),
        ("something else", "INTERNAL"),
        ("", "INTERNAL"),
    ],
)
@pytest.mark.parametrize("stage", ["text_encoder", "ar_sampler"])
def test_what_the_server_says_in_a_stages_place_is_counted_as_the_stages(
    calls: StageCalls, job: Job, monkeypatch: pytest.MonkeyPatch, stage: str, message: str, code: str
) -> None:
    answering(monkeypatch, failing(message))
    call = calls.call_ar_sampler(job, INPUTS) if stage == "ar_sampler" else calls.call(job, stage, INPUTS)
    with pytest.raises(StageError) as caught:
        asyncio.run(call)
    assert caught.value.code == code
    assert [metric.value for metric in counted("cosmos_requests", model=stage)] == [1]
    assert [metric.value for metric in counted("cosmos_requests", model=stage, code=code)] == [1]


@pytest.mark.parametrize("code", ["INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL"])
def test_what_a_stage_says_itself_it_has_counted(
    calls: StageCalls, job: Job, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    answering(monkeypatch, failing(f"[{code}] no"))
    with pytest.raises(StageError):
        asyncio.run(calls.call(job, "text_encoder", INPUTS))
    assert not counted("cosmos_requests", model="text_encoder")


@pytest.mark.parametrize("stage", ["diffusion_decoder", "ar_sampler"])
def test_a_process_that_died_is_not_waited_for(
    calls: StageCalls, files: JobFiles, job: Job, dead: int, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Neither by a request that it will never answer, nor for the end of a clip that it was working on."""
    released = threading.Event()

    def hang(request: InferenceRequest) -> InferenceResponse:
        report_as(dead)
        if stage == "diffusion_decoder":
            released.wait(30)
        return InferenceResponse([])

    def report_as(pid: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: pid)
            files.report(job.id, stage, 1, 5)

    answering(monkeypatch, hang)

    async def call() -> None:
        try:
            async with asyncio.timeout(20):
                await (calls.call_ar_sampler(job, INPUTS) if stage == "ar_sampler" else calls.call(job, stage, INPUTS))
        finally:
            released.set()

    with pytest.raises(StageError, match=f"^{stage}: its process died$"):
        asyncio.run(call())
    assert [metric.value for metric in counted("cosmos_requests", model=stage, code="INTERNAL")] == [1]


def test_progress_of_a_living_process_is_waited_for(
    calls: StageCalls, files: JobFiles, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(request: InferenceRequest) -> InferenceResponse:
        asked.append(request.arguments["inputs"])
        files.report(job.id, "ar_sampler", 5, 5)
        return InferenceResponse([Tensor("tokens", np.ones(1))] if len(asked) == 2 else [])

    answering(monkeypatch, answer)
    assert asyncio.run(calls.call_ar_sampler(job, INPUTS)).tolist() == [1]
    assert asked[1] == []
    assert job.progress == Progress("ar_sampler", 5, 5, os.getpid())


def test_nothing_is_called_for_a_job_that_has_ended(
    calls: StageCalls, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = answering(monkeypatch, failing("not called"))
    job.has_ended = True
    with pytest.raises(Cancelled):
        asyncio.run(calls.call(job, "text_encoder", INPUTS))
    assert made == []
