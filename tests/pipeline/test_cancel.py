"""A request that nobody waits for any more stops, in whichever stage it is, and leaves its place to the next.

Nothing of this is the server's own doing: it does not pass a cancellation on to the stages of a pipeline.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmos_triton.client import DeadlineExceeded, Generation, WorldClient
from support.pipeline_server import (
    CLIP,
    STOP_SECONDS,
    TRITON,
    PipelineServer,
    cancellations,
    follow,
    tensor,
)
from support.server import until

SLOTS = 4


@pytest.mark.parametrize("stage", ["ar_sampler", "diffusion_decoder"])
def test_stage_stops_within_a_second(base: PipelineServer, stage: str) -> None:
    usual = base.generate().report["seconds"]
    stopped, ended = cancellations(base, stage), cancellations(base, "world_generation_stream")
    guarded = base.runs("video_guardrail")
    with base.stream() as updates:
        follow(updates, stage)
    until(lambda: cancellations(base, stage) == stopped + 1, seconds=STOP_SECONDS)
    until(lambda: cancellations(base, "world_generation_stream") == ended + 1, seconds=STOP_SECONDS)
    again = base.generate().report["seconds"]
    for name, seconds in again.items():
        assert seconds < 2 * usual[name] + 0.5, name
    assert base.runs("video_guardrail") == guarded + 1  # of the request just made


def test_cancelled_clips_free_their_slots(base: PipelineServer) -> None:
    cancelled = base.metric("cosmos_ar_cancelled")
    with ExitStack() as stack:
        streams = [stack.enter_context(base.stream(seed=seed)) for seed in range(SLOTS)]
        for updates in streams:
            next(updates)  # only now it is sent
        until(lambda: base.metric("cosmos_ar_running") > 1, seconds=20)
    until(lambda: base.metric("cosmos_ar_running") == 0, seconds=STOP_SECONDS)
    assert base.metric("cosmos_ar_cancelled") > cancelled
    assert base.generate().report["outcome"] == "generated"


def test_plain_call_is_cancelled_too(base: PipelineServer) -> None:
    grpc = TRITON["grpc"]
    ended = cancellations(base, "world_generation")
    answers: list[Any] = []
    with grpc.InferenceServerClient(base.grpc_url) as client:
        held = [tensor(grpc, "visual_input", np.array([CLIP], np.object_))]
        call = client.async_infer("world_generation", held, lambda result, error: answers.append(error))
        until(lambda: base.metric("cosmos_ar_running") == 1, seconds=10)
        call.cancel()
        until(lambda: cancellations(base, "world_generation") == ended + 1, seconds=STOP_SECONDS)
        until(lambda: base.metric("cosmos_ar_running") == 0, seconds=STOP_SECONDS)
        until(lambda: bool(answers), seconds=10)
    assert "cancelled" in str(answers[0]).lower()


def test_ctrl_c_in_the_command_line_stops_the_work(base: PipelineServer, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    ended = cancellations(base, "world_generation_stream")
    program = Path(sys.executable).with_name("cosmos-triton")
    with subprocess.Popen(
        [program, "generate", "clip.mp4", "--url", base.grpc_url], cwd=tmp_path, stderr=subprocess.DEVNULL
    ) as command:
        until(lambda: base.metric("cosmos_ar_running") == 1, seconds=20)
        command.send_signal(signal.SIGINT)
        until(lambda: base.metric("cosmos_ar_running") == 0, seconds=STOP_SECONDS)
        until(lambda: cancellations(base, "world_generation_stream") == ended + 1, seconds=STOP_SECONDS)
        assert command.wait(timeout=5) == 130
    assert not (tmp_path / "outputs").exists()


def test_deadline_stops_the_work(base: PipelineServer) -> None:
    ended = cancellations(base, "world_generation_stream")
    with WorldClient(base.grpc_url) as client, pytest.raises(DeadlineExceeded):
        client.generate(CLIP, deadline=0.8)
    until(lambda: cancellations(base, "world_generation_stream") == ended + 1, seconds=2 * STOP_SECONDS)


def test_who_waits_for_the_decoder_is_served_when_the_one_in_front_leaves(base: PipelineServer) -> None:
    """One clip at a time: the one that leaves ends within an evaluation."""
    with ExitStack() as stack:
        streams = [stack.enter_context(base.stream(seed=seed)) for seed in range(4)]
        for updates in streams:
            next(updates)
        before = base.runs("diffusion_decoder"), base.statistics("diffusion_decoder")["execution_count"]
        *staying, leaving = streams
        follow(leaving, "diffusion_decoder")
        leaving.close()
        for updates in staying:
            last = list(updates)[-1]
            assert isinstance(last, Generation)
            assert last.video
    runs, batches = base.runs("diffusion_decoder"), base.statistics("diffusion_decoder")["execution_count"]
    assert batches - before[1] == runs - before[0]
