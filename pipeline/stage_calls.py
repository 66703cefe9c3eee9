"""Calls of stages: the server's blocking calls as coroutines, with progress and cancellation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import triton_python_backend_utils as pb

from cosmos_triton.pipeline.errors import STAGE_DIED, StageError
from cosmos_triton.pipeline.job import Job
from cosmos_triton.pipeline.job_files import JOB, JobFiles
from cosmos_triton.pipeline.metrics import RequestMetrics
from cosmos_triton.pipeline.stage import SENT
from cosmos_triton.pipeline.tensors import Array
from cosmos_triton.runtime.processes import is_alive
from cosmos_triton.runtime.stages import STAGES

POLL_SECONDS = 0.05  # between two polls of a call in flight; does not delay its answer
AR_POLL_SECONDS = 0.02  # between two polls of the AR engine; delays its answer by half of that on average
CALLS_PER_JOB = 2  # at most in flight: the prompt and the clip are processed side by side

Tensors = dict[str, Array]


class StageCalls:
    """Calls stages on behalf of jobs. All methods run in one event loop."""

    def __init__(self, job_files: JobFiles, metrics: RequestMetrics, *, max_jobs: int) -> None:
        self._job_files = job_files
        self._metrics = metrics
        # A call blocks a thread. The loop's default pool has too few.
        self._threads = ThreadPoolExecutor(CALLS_PER_JOB * max_jobs)

    async def call(self, job: Job, stage: str, inputs: Tensors) -> Tensors:
        """The outputs of a stage by name. Its duration goes into the report.

        Raises:
            StageError: the stage failed or died, or the job was cancelled.
        """
        if not STAGES[stage].reports_progress:  # the others send their own first event
            job.send_event(stage, 0, 1)
        started = time.monotonic()
        with self._counted(stage):
            outputs = await self._infer(job, stage, inputs)
        job.record_duration(stage, started)
        return outputs

    async def call_ar_sampler(self, job: Job, inputs: Tensors) -> Array:
        """The tokens of the whole clip, [5, h, w]; raises as `call` does.

        The first request submits the job, and the engine works on after its answer. When the progress is complete, a
        second request fetches the tokens. Waiting for one late response would hang for ever if the process died. Only a
        sampler whose weights are not resident works within the first request, and answers it with the tokens.
        """
        started = time.monotonic()
        with self._counted("ar_sampler"):
            outputs = await self._infer(job, "ar_sampler", inputs)
            if "tokens" not in outputs:
                while not (job.progress and job.progress.is_complete):
                    await asyncio.sleep(AR_POLL_SECONDS)
                    self._poll_progress(job, "ar_sampler")
                outputs = await self._infer(job, "ar_sampler", {})
        job.record_duration("ar_sampler", started)
        return outputs["tokens"]

    async def _infer(self, job: Job, stage: str, inputs: Tensors) -> Tensors:
        """One inference request, abandoned as soon as the job is cancelled or the stage's process has died."""
        job.check_wanted()
        request = pb.InferenceRequest(
            model_name=stage,
            requested_output_names=list(STAGES[stage].outputs),
            inputs=[pb.Tensor(name, values) for name, values in inputs.items()],
            request_id=job.label,
            parameters={JOB: job.id, SENT: time.monotonic_ns()},
        )
        call = asyncio.get_running_loop().run_in_executor(self._threads, request.exec)
        while not (await asyncio.wait({call}, timeout=POLL_SECONDS))[0]:
            self._poll_progress(job, stage)
        return _outputs(stage, call.result())

    @contextmanager
    def _counted(self, stage: str) -> Iterator[None]:
        """Counts what the stage cannot: that it was not ready, had no room for the request, or died."""
        started = time.monotonic()
        try:
            yield
        except StageError as error:
            if error.is_servers:
                self._metrics.count(stage, error.code, time.monotonic() - started)
            raise

    def _poll_progress(self, job: Job, stage: str) -> None:
        """Send new progress of the stage to the client.

        Raises:
            Cancelled: the job was cancelled.
            StageError: the process that reported progress has died.
        """
        job.check_wanted()
        progress = self._job_files.progress(job.id)
        if progress is None or progress.stage != stage:
            return
        if not is_alive(progress.pid):
            raise StageError.of(stage, STAGE_DIED)
        job.record_progress(progress)


def _outputs(stage: str, response: Any) -> Tensors:
    if response.has_error():
        raise StageError.of(stage, response.error().message())
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
