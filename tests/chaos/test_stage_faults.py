"""Every stage, and the server itself, killed or stopped at work: what is lost, and how soon it serves again."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from cosmos_triton.client import Generation, GuardrailBlocked, ServerFailed, ServerUnreachable
from cosmos_triton.runtime.stages import STAGES
from cosmos_triton.serving.processes import children_of
from support.figures import Note
from support.held_server import FAILED, UNREADY, HeldServer, kill_it, stop_it
from support.serve_held import LOCKED, WAITING
from support.server import until

SERVING = 30  # seconds after a fault within which the deployment generates again
SERVING_SERVER = 60  # where the server itself has to be started again
UNREADY_STILL = 15  # within which one is found that only waits
PAUSES = (0.0, 0.12, 0.01)  # seconds after a process appears, for kills in a row
GUARDRAILS = ("text_guardrail", "video_guardrail")
FAULTS = {"killed": kill_it, "stopped": stop_it}


@pytest.fixture(autouse=True)
def recovered(server: HeldServer) -> None:
    server.wait_until(ready=True, seconds=120)


def inputs_of(stage: str) -> dict[str, object]:
    return {"disable_diffusion_decoder": stage != "diffusion_decoder"}


def request_of(server: HeldServer, stage: str) -> Callable[[], object]:
    """A request that the stage takes part in."""
    if stage == "world_generation":
        return lambda: server.infer("grpc", **inputs_of(stage))
    return lambda: server.generate(**inputs_of(stage))


def seconds_to_serving(server: HeldServer, since: float, limit: float, **inputs: object) -> float:
    """Until a request is answered, sent again and again as a client may. The server may be ready for a moment with a
    stage that died meanwhile.
    """
    while True:
        server.wait_until(ready=True, seconds=limit)
        try:
            assert server.generate(**inputs).report["outcome"] == "generated"
        except (ServerFailed, ServerUnreachable, GuardrailBlocked):
            assert time.monotonic() - since < limit
        else:
            seconds = time.monotonic() - since
            assert seconds < limit
            return seconds


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", STAGES)
def test_stage_at_work(server: HeldServer, note: Note, stage: str, fault: str) -> None:
    triton = server.triton_pid
    outcome = server.strike(FAULTS[fault], at=stage, request=request_of(server, stage))
    assert outcome.error is not None
    if stage in GUARDRAILS:
        assert isinstance(outcome.error, GuardrailBlocked)
    assert outcome.failed < FAILED
    limit = SERVING_SERVER if STAGES[stage].is_fatal else SERVING
    serving = seconds_to_serving(server, outcome.fault_at, limit, **inputs_of(stage))
    assert (server.triton_pid == triton) is not STAGES[stage].is_fatal
    note(f"{stage} {fault}", lost_answers=1, failed=outcome.failed, not_ready=outcome.unready, serving=serving)


@pytest.mark.parametrize("fault", FAULTS)
def test_requests_at_other_stages_are_unharmed(server: HeldServer, note: Note, fault: str) -> None:
    """Requests wait at the last stage while all the others but the pipelines' are struck."""
    others = [name for name, spec in STAGES.items() if not spec.is_fatal and name != "media_encoder"]
    answers: list[Generation] = []
    with ThreadPoolExecutor(3) as pool:
        with server.hold("media_encoder"):
            requests = [pool.submit(server.generate, disable_diffusion_decoder=True) for _ in range(3)]
            server.wait_at_work("media_encoder")
            time.sleep(2)  # for the others to be there, of which nothing tells
            began = time.monotonic()
            for stage in others:
                for pid in server.stub_pids(stage):
                    FAULTS[fault](pid)
            unready = server.wait_until(ready=False, seconds=UNREADY)
            server.wait_until(ready=True, seconds=120)
            ready = time.monotonic() - began
        answers = [request.result(timeout=60) for request in requests]
    assert all(answer.report["outcome"] == "generated" for answer in answers)
    note(f"all others {fault}, 3 requests held at the end", lost_answers=0, not_ready=unready, ready=ready)


@pytest.mark.parametrize("fault", FAULTS)
def test_server_itself(server: HeldServer, note: Note, fault: str) -> None:
    triton = server.triton_pid
    with ThreadPoolExecutor(1) as pool, server.hold("ar_sampler"):
        request = pool.submit(server.generate)
        server.wait_at_work("ar_sampler")
        began = time.monotonic()
        FAULTS[fault](triton)
        server.wait_until(ready=False, seconds=UNREADY)
        unready = time.monotonic() - began
        assert request.exception(timeout=FAILED + 10) is not None
    serving = seconds_to_serving(server, began, SERVING_SERVER)
    assert server.triton_pid != triton
    note(f"tritonserver {fault}", lost_answers=1, not_ready=unready, serving=serving)


@pytest.mark.parametrize("how", [LOCKED, WAITING])
@pytest.mark.parametrize("stage", ["media_encoder", "ar_sampler"])
def test_stage_that_hangs_by_itself(server: HeldServer, note: Note, stage: str, how: str) -> None:
    """Its process lives and is not stopped: a call that never returns, in native code or with the interpreter free."""
    limit = {LOCKED: UNREADY, WAITING: UNREADY_STILL}[how]
    request = request_of(server, stage)
    outcome = server.strike(lambda pid: None, at=stage, request=request, how=how, unready_within=limit)
    assert outcome.error is not None
    serving = seconds_to_serving(server, outcome.fault_at, SERVING, **inputs_of(stage))
    note(f"{stage} hangs, {how}", failed=outcome.failed, not_ready=outcome.unready, serving=serving)


@pytest.mark.parametrize("stage", STAGES)
def test_three_kills_in_a_row(server: HeldServer, note: Note, stage: str) -> None:
    """Each as soon as there is a new process, or a moment later, when its load is at another point."""
    known = set(children(server))
    for pid in server.stub_pids(stage):
        kill_it(pid)
    for pause in PAUSES:
        wait_for_child(server, known)
        time.sleep(pause)
        new = set(children(server)) - known
        for pid in new:
            with suppress(ProcessLookupError):
                kill_it(pid)
        known |= new
    serving = seconds_to_serving(server, time.monotonic(), SERVING_SERVER, **inputs_of(stage))
    note(f"{stage} killed, and three times again", serving=serving)


@pytest.mark.parametrize("stage", ["world_generation", "media_encoder"])
def test_kill_at_the_moment_of_ready(server: HeldServer, note: Note, stage: str) -> None:
    kill_it(server.triton_pid)
    server.wait_until(ready=False, seconds=UNREADY)
    server.wait_until(ready=True, seconds=SERVING_SERVER)
    for pid in server.stub_pids(stage):
        kill_it(pid)
    began = time.monotonic()
    server.wait_until(ready=False, seconds=UNREADY)
    unready = time.monotonic() - began
    serving = seconds_to_serving(server, began, SERVING_SERVER, **inputs_of(stage))
    note(f"{stage} killed when ready turns 200", not_ready=unready, serving=serving)


def wait_for_child(server: HeldServer, known: set[int]) -> None:
    """Until the server has a child that is not among the `known`."""
    until(lambda: set(children(server)) - known, seconds=SERVING_SERVER)


def children(server: HeldServer) -> list[int]:
    try:
        return children_of(server.triton_pid)
    except ValueError:  # the server is being started again
        return []
