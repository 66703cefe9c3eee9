"""A stage's process is killed or stopped while it works: the request ends, readiness tells the truth, and the pipeline
comes back. The chaos lane does this to every stage in every way.

These tests come last of all that use the server: each puts it through a recovery.
"""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tritonclient.utils import InferenceServerException

from cosmos_triton.client import GuardrailBlocked, ServerFailed, ServerUnreachable
from support.held_server import HeldServer, kill_it, stop_it
from support.pipeline_server import PipelineServer
from support.server import until
from support.stage_death import FAILED, RECOVERED, RESTARTED, UNREADY, assert_recovers, kill_at

FAULTS = {  # of stages whose requests end without a restart of the server
    "media_decoder": kill_it,
    "text_encoder": stop_it,
    "text_guardrail": stop_it,
    "video_guardrail": kill_it,
}
GUARDRAILS = {"text_guardrail": "prompt_blocked", "video_guardrail": "video_blocked"}
LONG = ["ar_sampler", "diffusion_decoder"]


@pytest.fixture(autouse=True)
def recovered(video2world: PipelineServer) -> None:
    """A test that failed leaves a server that may still be restarting."""
    video2world.wait_until(ready=True, seconds=RECOVERED)


@pytest.mark.parametrize("stage", FAULTS)
def test_lost_stage_fails_its_request_and_comes_back(video2world: HeldServer, stage: str) -> None:
    """What a guardrail has not judged is blocked."""
    inputs = {"disable_diffusion_decoder": True}
    triton = video2world.triton_pid
    outcome = video2world.strike(FAULTS[stage], at=stage, request=lambda: video2world.generate(**inputs))
    if stage in GUARDRAILS:
        assert isinstance(outcome.error, GuardrailBlocked)
        assert outcome.error.report["outcome"] == GUARDRAILS[stage]
        assert outcome.error.report["reason"] == f"guardrail_error: {stage}: the check failed"
    else:
        assert isinstance(outcome.error, ServerFailed)
        assert str(outcome.error) == f"{stage}: its process died"
    assert outcome.failed < FAILED
    assert_recovers(video2world, outcome.fault_at, **inputs)
    assert video2world.triton_pid == triton


@pytest.mark.parametrize("stage", LONG)
def test_stage_killed_in_the_midst_fails_its_request_and_comes_back(video2world: PipelineServer, stage: str) -> None:
    triton = video2world.triton_pid
    error, seconds, killed = kill_at(
        video2world, stage, lambda event: event.stage == stage and 0 < event.done < event.total
    )
    assert isinstance(error, ServerFailed)
    assert str(error) == f"{stage}: its process died"
    assert seconds < FAILED
    assert_recovers(video2world, killed)
    assert video2world.triton_pid == triton


def test_killed_pipeline_restarts_the_server(video2world: PipelineServer) -> None:
    """Nothing else ends the requests that died with it: their clients lose the connection."""
    error, seconds, killed = kill_at(video2world, "world_generation_stream", lambda event: event.stage == "ar_sampler")
    assert isinstance(error, ServerUnreachable)
    assert seconds < FAILED
    assert_recovers(video2world, killed, seconds=RESTARTED)


def test_killed_plain_pipeline_restarts_the_server(video2world: PipelineServer) -> None:
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(video2world.infer, "grpc")
        until(lambda: video2world.metric("cosmos_ar_running") == 1, seconds=20)
        killed = time.monotonic()
        for pid in video2world.stub_pids("world_generation"):
            os.kill(pid, signal.SIGKILL)
        video2world.wait_until(ready=False, seconds=UNREADY)
        with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
            request.result(timeout=FAILED)
    assert_recovers(video2world, killed, seconds=RESTARTED)
    assert list((video2world.run_dir / "jobs").iterdir()) == []  # nobody waits for the one that was lost


def test_server_that_lost_requests_ends_in_order(video2world: PipelineServer) -> None:
    began = time.monotonic()
    assert video2world.stop() == 0
    assert time.monotonic() - began < 15
    assert video2world.left_processes() == []
