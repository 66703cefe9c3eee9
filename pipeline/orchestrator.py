"""A request's way through the stages, from the bytes of a clip or an image to the bytes of an mp4."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from cosmos_triton.guardrail.judgement import PROMPT_CHECKS, VIDEO_CHECKS, Judgement, RequiredChecks
from cosmos_triton.guardrail.verdict import GUARDRAIL_ERROR, Verdict
from cosmos_triton.pipeline.errors import StageError
from cosmos_triton.pipeline.job import VERSION, Job
from cosmos_triton.pipeline.metrics import GuardrailBlocks
from cosmos_triton.pipeline.stage_calls import StageCalls, Tensors
from cosmos_triton.pipeline.tensors import Array
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.media.fit import Fit, pixel_aspect_of

# Failure rate of image inputs in percent, as published with the models (100 clips each).
IMAGE_FAILURE_PERCENT = {"4b": 15, "5b-video2world": 7}


class Blocked(Exception):
    """A guardrail blocked the request: an outcome with a report, not an error."""

    def __init__(self, outcome: str, verdict: Verdict) -> None:
        error = f"{GUARDRAIL_ERROR}: " if verdict.is_error else ""
        super().__init__(f"{error}{verdict.guardrail}: {verdict.reason}")
        self.outcome = outcome


class Orchestrator:
    """Calls the stages in order. Any number of jobs can be in flight; the stages' queues and batchers do the rest."""

    def __init__(self, calls: StageCalls, *, guardrail_seconds: float) -> None:
        self._calls = calls
        self._guardrail_seconds = guardrail_seconds
        self._blocks = GuardrailBlocks()

    async def generate(self, job: Job) -> bytes:
        """The mp4.

        Raises:
            Blocked: a guardrail blocked the prompt or the video.
            StageError: a stage failed or died, or the job was cancelled.
        """
        frames, _ = await asyncio.gather(self._decode_media(job), self._check_prompt(job))
        tokens, context = await asyncio.gather(self._encode_frames(job, frames), self._encode_prompt(job))
        clip = await self._sample(job, tokens, context)
        if job.request.disable_diffusion_decoder:
            video = await self._decode_tokens(job, clip)
        else:
            video = await self._decode_by_diffusion(job, clip, context)
        return await self._encode_media(job, await self._check_video(job, video))

    async def _decode_media(self, job: Job) -> Tensors:
        """The input frames, uint8 [T, H, W, 3], and their pixel aspect.

        The report says what was read and how it will be fitted.
        """
        inputs = {"visual_input": job.visual_input}
        if job.request.num_input_frames is not None:
            inputs["num_input_frames"] = np.array([job.request.num_input_frames], np.int32)
        outputs = await self._calls.call(job, "media_decoder", inputs)
        info = json.loads(outputs["info"][0])
        job.report["input"] = info | {"fit": _describe_fit(info, outputs["frames"], job.deployment)}
        job.report["parameters"]["num_input_frames"] = info["num_input_frames"]
        percent = IMAGE_FAILURE_PERCENT.get(job.deployment.name)
        if info["kind"] == "image" and percent is not None:
            job.report["warnings"].append(
                f"{job.deployment.name} fails on {percent} % of images (large objects out of nowhere, or a single "
                "colour); a clip of 9 frames or a larger model fails on 0 to 3 %"
            )
        frames = {"frames": outputs["frames"]}
        if "pixel_aspect" in info:
            frames["pixel_aspect"] = np.array(info["pixel_aspect"], np.int32)
        return frames

    async def _check_prompt(self, job: Job) -> None:
        if job.request.prompt is not None:
            inputs = {"prompt": _bytes_tensor(job.request.prompt)}
            await self._check(job, "text_guardrail", inputs, PROMPT_CHECKS, outcome="prompt_blocked")

    async def _encode_frames(self, job: Job, frames: Tensors) -> Array:
        """Tokens [t, h, w] of the input frames."""
        return (await self._calls.call(job, "video_tokenizer_encoder", frames))["tokens"]

    async def _encode_prompt(self, job: Job) -> Array | None:
        """The T5 embedding [512, C]; None where the deployment takes no prompt."""
        if job.request.prompt is None:
            return None
        batch = {"prompt": _bytes_tensor(job.request.prompt)[None]}
        return (await self._calls.call(job, "text_encoder", batch))["context"][0]

    async def _sample(self, job: Job, tokens: Array, context: Array | None) -> Array:
        """Tokens [5, h, w] of the whole clip, which begin with those of the input frames."""
        request = job.request
        inputs = {
            "tokens": tokens,
            "seed": np.array([request.seed], np.int64),
            "temperature": np.array([request.temperature], np.float32),
            "top_p": np.array([request.top_p], np.float32),
        }
        if context is not None:
            inputs["context"] = context
        clip = await self._calls.call_ar_sampler(job, inputs)
        job.report["tokens_sha256"] = hashlib.sha256(clip.astype("<i4").tobytes()).hexdigest()
        return clip

    async def _decode_tokens(self, job: Job, clip: Array) -> Array:
        """The video, uint8 [33, H, W, 3], by the discrete tokenizer."""
        return (await self._calls.call(job, "video_tokenizer_decoder", {"tokens": clip}))["video"]

    async def _decode_by_diffusion(self, job: Job, clip: Array, context: Array | None) -> Array:
        """The video, uint8 [33, H, W, 3], by the diffusion decoder."""
        batch = {"tokens": clip[None], "seed": np.array([[job.request.seed]], np.int64)}
        if context is not None:
            batch["context"] = context[None]
        outputs = await self._calls.call(job, "diffusion_decoder", batch)
        job.report["sampler"] = job.deployment.release.sampler
        job.report["seconds_per_evaluation"] = round(outputs["seconds_per_evaluation"].item(), 4)
        return outputs["video"][0]

    async def _check_video(self, job: Job, video: Array) -> Array:
        """The video with faces blurred, of the same shape."""
        outputs = await self._check(job, "video_guardrail", {"video": video}, VIDEO_CHECKS, outcome="video_blocked")
        return outputs["video"]

    async def _encode_media(self, job: Job, video: Array) -> bytes:
        metadata = {
            "title": "Generated by an AI model",
            "comment": "AI-generated video",
            "model": job.deployment.ar_folder,
            "seed": str(job.request.seed),
            "software": f"cosmos-triton {VERSION}",
        }
        inputs = {"video": video, "metadata": _bytes_tensor(json.dumps(metadata))}
        return bytes((await self._calls.call(job, "media_encoder", inputs))["mp4"][0])

    async def _check(self, job: Job, stage: str, inputs: Tensors, required: RequiredChecks, *, outcome: str) -> Tensors:
        """The outputs of a guardrail stage whose judgement is safe. It fails closed.

        Raises:
            Blocked: the stage blocked; or it failed, died, timed out, or its answer is not a valid judgement.
            StageError: the request was cancelled or invalid, or the stage is unavailable.
        """
        outputs: Tensors = {}
        try:
            async with asyncio.timeout(self._guardrail_seconds):
                outputs = await self._calls.call(job, stage, inputs)
            judgement = Judgement.read(outputs["verdict"].item(), required)
            if "video" in inputs and outputs["video"].shape != inputs["video"].shape:
                raise ValueError(f"video came back as {outputs['video'].shape}")
        except Exception as error:
            if isinstance(error, StageError) and error.code != "INTERNAL":
                raise
            pb.Logger.log_error(f"{job.pipeline} {job.label}: {stage} gave no verdict: {error!r:.200}")
            judgement = Judgement((Verdict.failed(stage),))
        job.report["guardrails"] += [asdict(check) for check in judgement.checks]
        job.report |= judgement.facts
        if not judgement.last.safe:
            self._blocks.count(judgement.last)
            raise Blocked(outcome, judgement.last)
        return outputs


def _describe_fit(info: Mapping[str, Any], frames: Array, deployment: Deployment) -> str:
    """How frames [T, H, W, 3], which may have half the size of the file's, will be fitted."""
    source = frames.shape[1], frames.shape[2]
    aspect = pixel_aspect_of(info.get("pixel_aspect", (1, 1)))
    fit = Fit.plan(source, (deployment.height, deployment.width), aspect).describe()
    return fit if source == (info["height"], info["width"]) else f"decoded at half its size, {fit}"


def _bytes_tensor(text: str) -> Array:
    """BYTES [1]."""
    return np.array([text.encode()], dtype=np.object_)
