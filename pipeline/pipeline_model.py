"""The Triton model of the pipeline: world_generation, and world_generation_stream, which sends events as well.

`execute` starts a coroutine per request on an event loop in a thread of its own, and returns.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import triton_python_backend_utils as pb

from cosmos_triton.pipeline.errors import OK, StageError
from cosmos_triton.pipeline.job import Job
from cosmos_triton.pipeline.metrics import RequestMetrics
from cosmos_triton.pipeline.orchestrator import Blocked, Orchestrator
from cosmos_triton.pipeline.responses import FINAL, describe, failure
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.stage_calls import StageCalls
from cosmos_triton.pipeline.tensors import array, inputs_of, json_tensor, scalar, string_tensor, text
from cosmos_triton.runtime.generation_request import GenerationRequest
from cosmos_triton.runtime.heartbeat import start_heartbeat

PARAMETERS = ("num_input_frames", "temperature", "top_p", "seed", "disable_diffusion_decoder")
STOP_SECONDS = 10
LOGGED_ID = 100  # characters of a request id, which clients choose, that are logged


class PipelineModel:
    """Admits requests, runs each as a job, and answers it."""

    # Time a guardrail stage has to answer, queueing included. Each check has a time limit in its own process as well.
    guardrail_seconds = 300.0

    def initialize(self, args: dict[str, str]) -> None:
        start_heartbeat()
        self.settings = Settings.read(args)
        self.streams = pb.using_decoupled_model_transaction_policy(json.loads(args["model_config"]))
        self.max_jobs = self.settings.parameters.max_jobs
        self.jobs: dict[str, Job] = {}  # in flight, by id
        self.metrics = RequestMetrics()
        calls = StageCalls(self.settings.jobs, self.metrics, max_jobs=self.max_jobs)
        self.orchestrator = Orchestrator(calls, guardrail_seconds=self.guardrail_seconds)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="pipelines", daemon=True)
        self.thread.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender, began = request.get_response_sender(), time.monotonic()
            try:
                job = self._admit(request, sender)
            except Exception as error:
                self._count(describe(error)[0], began)
                sender.send(failure(self.settings.name, _id_of(request), error), flags=FINAL)
            else:
                asyncio.run_coroutine_threadsafe(self._run(job, began), self.loop)

    def finalize(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(STOP_SECONDS)

    def _admit(self, request: Any, sender: Any) -> Job:
        """The job of a valid request.

        Raises:
            StageError: too many jobs are in flight.
            InvalidValue: a parameter is not accepted.
        """
        if len(self.jobs) >= self.max_jobs:
            raise StageError("UNAVAILABLE", f"{len(self.jobs)} requests are under way")
        deployment = self.settings.deployment
        inputs = inputs_of(request)
        parameters = {name: scalar(inputs, name) for name in PARAMETERS}
        job = Job(
            pipeline=self.settings.name,
            deployment=deployment,
            request=GenerationRequest.checked(deployment, prompt=text(inputs, "prompt"), **parameters),
            visual_input=array(inputs, "visual_input").copy(),  # outlives the request
            sender=sender,
            streams=self.streams,
        )
        self.settings.jobs.begin(job.id)
        self.jobs[job.id] = job
        job.log(f"started for request {_id_of(request)}")
        return job

    async def _run(self, job: Job, began: float) -> None:
        try:
            video, outcome, reason = await self.orchestrator.generate(job), "generated", ""
        except Blocked as blocked:
            video, outcome, reason = b"", blocked.outcome, str(blocked)
        except Exception as error:
            self._end(job)
            self._count(describe(error)[0], began)
            job.sender.send(failure(job.pipeline, job.label, error), flags=FINAL)
            return
        self._end(job)
        self._count(OK, began)
        seconds = round(time.monotonic() - began, 3)
        job.report["seconds"]["total"] = seconds
        job.log(f"{outcome}{f' ({reason})' if reason else ''} after {seconds} s")
        report = json_tensor("report", {"outcome": outcome, "reason": reason} | job.report)
        job.sender.send(pb.InferenceResponse([string_tensor("video", video), report]), flags=FINAL)

    def _end(self, job: Job) -> None:
        """Called before the final response, so that no event follows it and the job's id is worth nothing after it."""
        job.has_ended = True
        del self.jobs[job.id]
        self.settings.jobs.end(job.id)

    def _count(self, code: str, began: float) -> None:
        """A request is about to be answered. What a guardrail blocked is answered with OK."""
        self.metrics.count(self.settings.name, code, time.monotonic() - began)


def _id_of(request: Any) -> str:
    """The client's id of a request, for the log."""
    return repr(request.request_id()[:LOGGED_ID])
