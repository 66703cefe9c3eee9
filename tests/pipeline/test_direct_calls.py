"""Whoever reaches the server can call a stage; it works for the pipeline alone, and nobody else notices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from cosmos_triton.client import Generation
from cosmos_triton.pipeline.job_files import JOB
from cosmos_triton.runtime.stage_inputs import BYTES
from cosmos_triton.runtime.stages import STAGES
from support.pipeline_server import PipelineServer, follow

WORKING = [stage for stage, spec in STAGES.items() if not spec.is_entry]
REFUSED = r"\[INVALID_ARG\] (job|parameters): value .+; accepted: .+"
MANY = 500_000  # elements of a tensor that is too large
LONG = b"a " * 5_000_000
LARGE = {
    "video_guardrail": {"video": np.zeros((60_000, 8, 8, 3), np.uint8)},
    "video_tokenizer_encoder": {"frames": np.zeros((1, 1, 60_000, 3), np.uint8)},
    "text_guardrail": {"prompt": np.array([LONG], np.object_)},
    "text_encoder": {"prompt": np.array([[LONG]], np.object_)},
}
Tensors = dict[str, np.ndarray]


def filled(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, b"1" if dtype == BYTES else 1, dtype)


def valid(server: PipelineServer, stage: str) -> Tensors:
    """What a stage would work on."""
    accepted = STAGES[stage].inputs(server.deployment)
    return {name: filled(limit.dtype, tuple(sizes[0] for sizes in limit.shape)) for name, limit in accepted.items()}


def odd(server: PipelineServer, stage: str) -> Iterator[Tensors]:
    """Requests with one tensor that the stage, or the server in its place, must refuse."""
    inputs = valid(server, stage)
    for name, limit in STAGES[stage].inputs(server.deployment).items():
        dtype, shape = limit.dtype, inputs[name].shape
        shapes = {(), (0,) * len(shape), shape[1:], (*shape, 1), (2, *shape)}
        for axis, sizes in enumerate(limit.shape):
            elements = inputs[name].size // shape[axis]
            for size in (0, shape[axis] + 1, 7 * shape[axis], min(60_000, MANY // elements)):
                if size not in sizes:
                    shapes.add((*shape[:axis], size, *shape[axis + 1 :]))
        wrong = [filled(dtype, other) for other in shapes if len(other)]
        wrong += [filled(np.dtype(other), shape) for other in ("float32", "int32", "uint8", "bool") if other != dtype]
        if limit.values:
            outside = {-1, limit.values[0] - 1, limit.values[-1] + 1, 2**31 - 1} - {2**31}  # which int32 has not
            wrong += [filled(dtype, shape) * value for value in outside if value not in limit.values]
        if limit.is_text:
            wrong += [np.full(shape, b"\xff", np.object_)]
        for tensor in wrong:
            yield inputs | {name: tensor}


def refusal(
    server: PipelineServer, stage: str, tensors: Tensors, protocol: str = "grpc", job: object | None = None
) -> str:
    """The message of a request that is not accepted."""
    with pytest.raises(InferenceServerException) as caught:
        server.infer_model(stage, protocol, parameters=None if job is None else {JOB: job}, **tensors)
    message = str(caught.value.message())
    assert caught.value.status() == {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}[protocol], message
    return message


@pytest.mark.parametrize("stage", WORKING)
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_no_way_leads_around_the_pipeline(video2world: PipelineServer, stage: str, protocol: str) -> None:
    """A request with valid tensors, and every id that a client could come by: none, made up, or of a job's past."""
    tensors = valid(video2world, stage)
    with video2world.job() as ended:
        pass
    ids = ["", ended, "..", "../models", f"../jobs/{ended}", "0" * 32, "\n" * 32, ended.upper(), ended[:-1], "a" * 9000]
    before = video2world.counted("cosmos_requests", model=stage, code="INVALID_ARG")
    for job in (None, 5, True, *ids):
        message = refusal(video2world, stage, tensors, protocol, job)
        assert re.fullmatch(REFUSED, message), message
        assert ended not in message
    assert video2world.counted("cosmos_requests", model=stage, code="INVALID_ARG") == before + 3 + len(ids)


def test_another_users_clip_is_not_harmed_by_whatever_is_sent(video2world: PipelineServer) -> None:
    """All stages, with a living job and without, and tensors of all sizes and types, while a clip is being made."""
    alone = video2world.generate(seed=5).report["tokens_sha256"]
    pids = {stage: sorted(video2world.stub_pids(stage)) for stage in WORKING}
    with video2world.stream(seed=5) as updates, video2world.job() as job:
        follow(updates, "ar_sampler")
        for stage, tensors in LARGE.items():
            assert re.fullmatch(REFUSED, refusal(video2world, stage, tensors))
        for stage in WORKING:
            for number, tensors in enumerate(odd(video2world, stage)):
                refusal(video2world, stage, tensors, job=job)
                if number % 4 == 0:
                    refusal(video2world, stage, tensors, job=None)
        *_, generation = updates
    assert isinstance(generation, Generation)
    assert generation.report["tokens_sha256"] == alone
    assert generation.video
    assert {stage: sorted(video2world.stub_pids(stage)) for stage in WORKING} == pids


def test_odd_requests_are_many(video2world: PipelineServer) -> None:
    """Or the test above would show little."""
    for stage in WORKING:
        assert len(list(islice(odd(video2world, stage), 10))) == 10, stage
