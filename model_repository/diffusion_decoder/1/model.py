"""The stage diffusion_decoder: tokens -> video, one clip at a time.

A batch takes as long as its clips one after the other, since every clip keeps the whole GPU at work; one at a time, the
first of them is there sooner.
"""

import time

import numpy as np
import torch
import triton_python_backend_utils as pb

from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.stage import Stage
from cosmos_triton.pipeline.tensors import array
from cosmos_triton.runtime.heartbeat import at_work, start_heartbeat
from cosmos_triton.runtime.media.frames import to_uint8


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()
        settings = Settings.for_networks(args)
        self.stage = Stage(settings)
        self.placement = settings.placement()
        loader = settings.loader(self.placement)
        self.jobs, self.device, self.frames = settings.jobs, settings.device, settings.deployment.frames
        self.decoder, self.generic_context = loader.diffusion_decoder(), loader.generic_context().float()
        if description := getattr(self.decoder.network, "description", None):  # a CPU's, or a graph's, has none
            pb.Logger.log_info(f"diffusion_decoder: {description}")
        size = (settings.deployment.height, settings.deployment.width)
        settings.warm_up(
            self.placement, lambda: self.decoder.warm_up(self.generic_context, frames=self.frames, size=size)
        )

    @at_work
    def execute(self, requests):
        return self.stage.answer_each(requests, self.decode)

    def decode(self, call):
        """uint8 video [1, 33, H, W, 3], and seconds of an evaluation, the first one left out."""
        ends = []

        def on_step(done, total):
            ends.append(time.monotonic())
            self.jobs.report(call.job, "diffusion_decoder", done, total)

        tokens, given = torch.from_numpy(array(call.inputs, "tokens")), call.inputs.get("context")
        seed = call.inputs.get("seed")
        context = self.generic_context[None] if given is None else torch.from_numpy(given)
        with self.placement.on_device():
            video = self.decoder.decode(
                tokens.to(self.device).long(),
                context.to(self.device),
                frames=self.frames,
                seed=0 if seed is None else seed.item(),
                on_step=on_step,
            )
            clip = to_uint8(video[0])[None].cpu().numpy()
            del video
        seconds = np.array([[(ends[-1] - ends[0]) / (len(ends) - 1)]], np.float32)
        return [pb.Tensor("video", clip), pb.Tensor("seconds_per_evaluation", seconds)]
