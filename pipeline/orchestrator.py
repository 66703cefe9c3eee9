"""The pipeline: from a request's bytes to a video, through the stages. world_generation and world_generation_stream
are both this, once answering with the result alone and once with events before it.

`execute` starts a coroutine on a loop of this process's own and returns; any number of jobs are under way at once, and
the stages' queues and batches do the rest.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from cosmos_triton.guardrail.judgement import PROMPT_PANEL, VIDEO_PANEL, Judgement, Panel
from cosmos_triton.guardrail.verdict import GUARDRAIL_ERROR, Verdict
from cosmos_triton.pipeline.block_counter import BlockCounter
from cosmos_triton.pipeline.errors import Cancelled, StageError
from cosmos_triton.pipeline.jobs import Progress
from cosmos_triton.pipeline.responses import FINAL, failure
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.tensors import Array, array, json_tensor, scalar, string_tensor, texts
from cosmos_triton.runtime.generation_request import GenerationRequest
from cosmos_triton.runtime.media.fit import Fit
from cosmos_triton.runtime.processes import is_alive
from cosmos_triton.runtime.stages import STAGES

VERSION = version("cosmos-triton")
WATCH_SECONDS = 0.05  # between two looks at a call under way, whose answer comes at once all the same
TOKENS_SECONDS = 0.02  # between two looks whether ar_sampler is done: this does delay a clip
GUARDRAIL_SECONDS = 300.0  # waiting in line included; what a check itself may take is guarded in its own process
TAG = re.compile(r"\[(INVALID_ARG|UNAVAILABLE|CANCELLED|INTERNAL)\] ")
AWAY = ("Exceeds maximum queue size", "Request timeout expired", "is not ready", "unknown model")
DEAD = "is not healthy"  # so the server calls a stage whose process has died
IMAGE_FAILURES = {"4b": 15, "5b-video2world": 7}  # per cent of 100 clips, as published with the models


class Blocked(Exception):
    """A guardrail said no. That is an outcome, not an error."""

    def __init__(self, outcome: str, verdict: Verdict) -> None:
        error = f"{GUARDRAIL_ERROR}: " if verdict.is_error else ""
        super().__init__(f"{error}{verdict.guardrail}: {verdict.reason}")
        self.outcome = outcome


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way through the stages."""

    request: GenerationRequest
    visual_input: Array
    sender: Any
    streams: bool  # whether somebody listens to events
    has_ended: bool = False  # a stage that is no longer waited for may still answer
    progress: Progress | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    report: dict[str, Any] = field(
        default_factory=lambda: {
            "seconds": {},
            "guardrails": [],
            "policy_sha256": None,  # until a prompt was checked
            "faces_blurred": 0,
            "frames_blurred": 0,
            "warnings": [],
        }
    )

    def event(self, stage: str, done: int, total: int) -> None:
        if self.streams and not self.has_ended:
            event = json_tensor("event", {"stage": stage, "done": done, "total": total})
            self.sender.send(pb.InferenceResponse([event]))


class Orchestrator:
    guardrail_seconds = GUARDRAIL_SECONDS

    def initialize(self, args: dict[str, str]) -> None:
        self.settings = Settings.read(args)
        self.streams = pb.using_decoupled_model_transaction_policy(json.loads(args["model_config"]))
        self.max_jobs = self.settings.parameters.max_jobs
        self.blocks = BlockCounter()
        self.jobs: dict[str, Job] = {}
        self.loop = asyncio.new_event_loop()
        # Calls of stages block a thread each, two at most for a job; the loop's own pool would be far smaller.
        self.loop.set_default_executor(ThreadPoolExecutor(2 * self.max_jobs))
        self.thread = threading.Thread(target=self.loop.run_forever, name="pipelines", daemon=True)
        self.thread.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                job = self._accept(request, sender)
            except Exception as error:
                sender.send(failure(self.settings.name, repr(request.request_id()), error), flags=FINAL)
            else:
                asyncio.run_coroutine_threadsafe(self._run(job), self.loop)

    def finalize(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    def _accept(self, request: Any, sender: Any) -> Job:
        if len(self.jobs) >= self.max_jobs:
            raise StageError("UNAVAILABLE", f"{len(self.jobs)} requests are under way")
        names = ("num_input_frames", "temperature", "top_p", "seed", "disable_diffusion_decoder")
        asked = {name: scalar(request, name) for name in names}
        prompt = next(iter(texts(request, "prompt")), None)
        checked = GenerationRequest.checked(self.settings.deployment, prompt=prompt, **asked)
        job = Job(checked, array(request, "visual_input").copy(), sender, streams=self.streams)
        self.jobs[job.id] = job
        self.settings.jobs.begin(job.id)
        self._log(job, f"started for request {request.request_id()!r}")
        return job

    async def _run(self, job: Job) -> None:
        started = time.monotonic()
        try:
            video, outcome = await self._generate(job), {"outcome": "generated", "reason": ""}
        except Blocked as blocked:
            video, outcome = b"", {"outcome": blocked.outcome, "reason": str(blocked)}
        except Exception as error:
            self._end(job)
            job.sender.send(failure(self.settings.name, job.id, error), flags=FINAL)
            return
        self._end(job)
        seconds = round(time.monotonic() - started, 3)
        because = f" ({outcome['reason']})" if outcome["reason"] else ""
        self._log(job, f"{outcome['outcome']}{because} after {seconds} s")
        job.report["seconds"]["total"] = seconds
        report = json_tensor("report", outcome | job.report)
        job.sender.send(pb.InferenceResponse([string_tensor("video", video), report]), flags=FINAL)

    def _end(self, job: Job) -> None:
        job.has_ended = True
        del self.jobs[job.id]
        self.settings.jobs.end(job.id)

    def _log(self, job: Job, message: str) -> None:
        pb.Logger.log_info(f"{self.settings.name} {job.id}: {message}")

    async def _generate(self, job: Job) -> bytes:
        deployment, request, report = self.settings.deployment, job.request, job.report
        report |= {
            "job": job.id,
            "deployment": deployment.name,
            "versions": {"cosmos-triton": VERSION},
            "parameters": request.parameters(),
        }
        frames, _ = await asyncio.gather(self._decode_media(job), self._check_prompt(job))
        tokens, context = await asyncio.gather(
            self._call(job, "video_tokenizer_encoder", {"frames": frames}), self._encode_prompt(job)
        )
        sampling = {
            "tokens": tokens["tokens"],
            "seed": np.array([request.seed], np.int64),
            "temperature": np.array([request.temperature], np.float32),
            "top_p": np.array([request.top_p], np.float32),
        }
        clip = await self._sample(job, sampling | _optional("context", context))
        report["tokens_sha256"] = hashlib.sha256(clip.astype("<i4").tobytes()).hexdigest()
        if request.disable_diffusion_decoder:
            video = (await self._call(job, "video_tokenizer_decoder", {"tokens": clip}))["video"]
        else:
            batch = {"tokens": clip[None]} | _optional("context", None if context is None else context[None])
            video = (await self._call(job, "diffusion_decoder", batch))["video"][0]
        video = (await self._judge(job, "video_guardrail", {"video": video}, VIDEO_PANEL, "video_blocked"))["video"]
        metadata = {
            "title": "Generated by an AI model",
            "comment": "AI-generated video",
            "model": deployment.ar_folder,
            "seed": str(request.seed),
            "software": f"cosmos-triton {VERSION}",
        }
        encoded = await self._call(job, "media_encoder", {"video": video, "metadata": _strings(json.dumps(metadata))})
        return bytes(encoded["mp4"][0])

    async def _decode_media(self, job: Job) -> Array:
        """The input frames, and in the report what they are and what becomes of them."""
        inputs = {"visual_input": job.visual_input}
        if job.request.num_input_frames is not None:
            inputs["num_input_frames"] = np.array([job.request.num_input_frames], np.int32)
        decoded = await self._call(job, "media_decoder", inputs)
        info = json.loads(decoded["info"][0])
        deployment, size = self.settings.deployment, (info["height"], info["width"])
        info["fit"] = Fit.plan(size, (deployment.height, deployment.width)).describe(size)
        job.report["input"] = info
        job.report["parameters"]["num_input_frames"] = info["num_input_frames"]
        share = IMAGE_FAILURES.get(deployment.name)
        if info["kind"] == "image" and share is not None:
            job.report["warnings"].append(
                f"{deployment.name} fails on {share} % of images (large objects out of nowhere, or a single colour); "
                "a clip of 9 frames or a larger model fails on 0 to 3 %"
            )
        return decoded["frames"]

    async def _check_prompt(self, job: Job) -> None:
        if job.request.prompt is not None:
            inputs = {"prompt": _strings(job.request.prompt)}
            await self._judge(job, "text_guardrail", inputs, PROMPT_PANEL, "prompt_blocked")

    async def _encode_prompt(self, job: Job) -> Array | None:
        if job.request.prompt is None:
            return None
        return (await self._call(job, "text_encoder", {"prompt": _strings(job.request.prompt)[None]}))["context"][0]

    async def _judge(
        self, job: Job, stage: str, inputs: dict[str, Array], panel: Panel, outcome: str
    ) -> dict[str, Array]:
        """The outputs of a guardrail stage that has called its inputs safe, in a form that leaves no doubt.

        Raises:
            Blocked: it has not, whatever the cause: it says no, or nothing in time, or what is no verdict, or has died.
            StageError: the request was cancelled, or refused, or has to wait until the stage is back.
        """
        outputs: dict[str, Array] = {}
        try:
            async with asyncio.timeout(self.guardrail_seconds):
                outputs = await self._call(job, stage, inputs)
            judgement = Judgement.read(outputs["verdict"].item(), panel)
            for name, given in inputs.items():
                if name in STAGES[stage].outputs and outputs[name].shape != given.shape:
                    raise ValueError(f"{name} came back as {outputs[name].shape}")
        except Exception as error:
            if isinstance(error, StageError) and error.code != "INTERNAL":
                raise
            pb.Logger.log_error(f"{self.settings.name} {job.id}: {stage} gave no verdict: {error!r:.200}")
            judgement = Judgement((Verdict.failed(stage),))
        job.report["guardrails"] += [asdict(check) for check in judgement.checks]
        job.report |= judgement.facts
        if not judgement.last.safe:
            self.blocks.count(judgement.last)
            raise Blocked(outcome, judgement.last)
        return outputs

    async def _call(self, job: Job, stage: str, inputs: dict[str, Array]) -> dict[str, Array]:
        """The answer of a stage, by tensor; in the report, how long it took.

        Raises:
            StageError: the stage failed, or died, or nobody waits any more.
        """
        if not STAGES[stage].reports_progress:
            job.event(stage, 0, 1)
        started = time.monotonic()
        outputs = await self._ask(job, stage, inputs)
        self._note_end(job, stage, started)
        return outputs

    async def _sample(self, job: Job, inputs: dict[str, Array]) -> Array:
        """The tokens of the clip [5, h, w].

        ar_sampler works on between its answers: the first says that it has begun, the second brings the tokens. One
        answer, given late, would never come if the process died, and the server would wait for it for ever. Only where
        its weights are not resident does it work while it is asked, and answer with the tokens at once.
        """
        started = time.monotonic()
        outputs = await self._ask(job, "ar_sampler", inputs)
        while "tokens" not in outputs and not (job.progress and job.progress.is_complete):
            await asyncio.sleep(TOKENS_SECONDS)
            self._look_after(job, "ar_sampler")
        if "tokens" not in outputs:
            outputs = await self._ask(job, "ar_sampler", {})
        self._note_end(job, "ar_sampler", started)
        return outputs["tokens"]

    async def _ask(self, job: Job, stage: str, inputs: dict[str, Array]) -> dict[str, Array]:
        self._check_wanted(job)
        request = pb.InferenceRequest(
            model_name=stage,
            requested_output_names=list(STAGES[stage].outputs),
            inputs=[pb.Tensor(name, values) for name, values in inputs.items()],
            request_id=job.id,
            parameters={"job": job.id},
        )
        answer = self.loop.run_in_executor(None, request.exec)
        while not (await asyncio.wait({answer}, timeout=WATCH_SECONDS))[0]:
            self._look_after(job, stage)
        response = answer.result()
        if response.has_error():
            raise _failed(stage, response.error().message())
        return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}

    def _look_after(self, job: Job, stage: str) -> None:
        """Hand on the news of a stage at work. An end of its process, or of the interest in it, is not waited out."""
        self._check_wanted(job)
        progress = self.settings.jobs.progress(job.id)
        if progress is None or progress.stage != stage:
            return
        if not is_alive(progress.pid):
            raise _failed(stage, DEAD)
        if progress != job.progress:
            job.progress = progress
            job.event(stage, progress.done, progress.total)

    def _check_wanted(self, job: Job) -> None:
        if job.has_ended or job.sender.is_cancelled():
            raise Cancelled

    def _note_end(self, job: Job, stage: str, started: float) -> None:
        job.report["seconds"][stage] = seconds = round(time.monotonic() - started, 3)
        self._log(job, f"{stage} took {seconds} s")
        progress = job.progress
        if not (progress and progress.stage == stage):
            job.event(stage, 1, 1)
        elif not progress.is_complete:
            job.event(stage, progress.total, progress.total)


def _failed(stage: str, message: str) -> StageError:
    """The exception for an error that a stage answered with."""
    if found := TAG.search(message):
        code, detail = found[1], message[found.end() :]
    elif DEAD in message:
        code, detail = "INTERNAL", "its process died"
    else:  # of the server itself
        code = "UNAVAILABLE" if any(sign in message for sign in AWAY) else "INTERNAL"
        detail = message.strip().splitlines()[0]
    return StageError(code, detail if code == "INVALID_ARG" else f"{stage}: {detail}")


def _optional(name: str, value: Array | None) -> dict[str, Array]:
    return {} if value is None else {name: value}


def _strings(text: str) -> Array:
    return np.array([text.encode()], dtype=np.object_)
