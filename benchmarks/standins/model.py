"""A stand-in for any stage that runs a network: it sleeps for a constant time, and returns tensors of full size.

The video is the project's sample clip, since media_encoder's time depends on the content. The video guardrail returns
its input.
"""

import threading
import time

import numpy as np
import triton_python_backend_utils as pb

from cosmos_triton.guardrail.judgement import VIDEO_CHECKS, Judgement
from cosmos_triton.guardrail.verdict import Verdict
from cosmos_triton.pipeline.settings import Settings, parameters_of
from cosmos_triton.pipeline.stage import Stage
from cosmos_triton.pipeline.tensors import array, string_tensor
from cosmos_triton.runtime.media.encode import FPS
from cosmos_triton.tiny.sample_media import EVENING, draw

STRIDE = 16  # pixels a token
CLIP_LATENTS = 5


class TritonPythonModel:
    def initialize(self, args):
        settings = Settings.read(args)
        self.stage = Stage(settings)
        self.deployment, self.jobs = settings.deployment, settings.jobs
        self.seconds = float(parameters_of(args)["standin_seconds"])
        self.name, self.answer = settings.name, getattr(self, settings.name)
        if settings.name in ("diffusion_decoder", "video_tokenizer_decoder"):
            self.clip = np.stack([draw(i / FPS, EVENING) for i in range(self.deployment.frames)])  # [T, H, W, 3]

    def execute(self, requests):
        return self.stage.answer_each(requests, self.answer_in_time)

    def answer_in_time(self, call):
        if self.name != "ar_sampler":  # which works between its two responses
            time.sleep(self.seconds)
        return self.answer(call)

    def tokens(self, latents):
        height, width = self.deployment.height // STRIDE, self.deployment.width // STRIDE
        return [pb.Tensor("tokens", np.zeros((latents, height, width), np.int32))]

    def video_tokenizer_encoder(self, call):
        return self.tokens(1 + (len(array(call.inputs, "frames")) - 1) // 8)

    def ar_sampler(self, call):
        if not call.inputs:
            return self.tokens(CLIP_LATENTS)
        done = (call.job, self.name, CLIP_LATENTS, CLIP_LATENTS)
        threading.Timer(self.seconds, self.jobs.report, done).start()
        return []

    def diffusion_decoder(self, call):
        seconds = pb.Tensor("seconds_per_evaluation", np.zeros((1, 1), np.float32))
        return [pb.Tensor("video", self.clip[None]), seconds]  # with the batch dimension

    def video_tokenizer_decoder(self, call):
        return [pb.Tensor("video", self.clip)]

    def video_guardrail(self, call):
        judgement = Judgement(tuple(map(Verdict.passed, VIDEO_CHECKS.names)), dict.fromkeys(VIDEO_CHECKS.facts, 0))
        return [pb.Tensor("video", array(call.inputs, "video")), string_tensor("verdict", judgement.to_json())]
