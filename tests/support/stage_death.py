"""Kill a stage while it works, and see the request end and the pipeline come back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from cosmos_triton.client import Event, Generation
from support.pipeline_server import PipelineServer

FAILED = 15  # seconds within which the request must have ended
UNREADY = 5  # within which /v2/health/ready says so
RECOVERED = 30  # within which the deployment generates again
RESTARTED = 60  # the same, where the server itself has to be restarted


def kill_at(
    server: PipelineServer, model: str, is_time: Callable[[Event], bool], **inputs: object
) -> tuple[BaseException | None, float, float]:
    """Generate, and kill a model's processes at a certain event. Returns how the request ended, how many seconds
    after the kill, and when that was.
    """
    killed_at: list[float] = []

    def on_event(event: Event) -> None:
        if is_time(event) and not killed_at:
            killed_at.append(time.monotonic())
            for pid in server.stub_pids(model):
                os.kill(pid, signal.SIGKILL)

    def generate() -> tuple[BaseException | None, float]:
        error: BaseException | None = None
        try:
            server.generate(on_event=on_event, **inputs)
        except Exception as caught:
            error = caught
        return error, time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        request: Future[tuple[BaseException | None, float]] = pool.submit(generate)
        while not killed_at and not request.done():
            time.sleep(0.005)
        assert killed_at, request.result()
        server.wait_until(ready=False, seconds=UNREADY)
        error, ended = request.result()
    return error, ended - killed_at[0], killed_at[0]


def assert_recovers(server: PipelineServer, killed: float, *, seconds: float = RECOVERED, **inputs: object) -> None:
    server.wait_until(ready=True, seconds=seconds)
    answer: Generation = server.generate(**inputs)
    assert answer.report["outcome"] == "generated"
    assert time.monotonic() - killed < seconds
