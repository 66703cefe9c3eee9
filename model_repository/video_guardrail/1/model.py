"""The stage video_guardrail: a video -> the same with faces blurred, or black if unsafe, and the judgement."""

import torch
import triton_python_backend_utils as pb

from cosmos_triton.guardrail.video_guardrail import VideoGuardrail
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.stage import Stage
from cosmos_triton.pipeline.tensors import array, string_tensor
from cosmos_triton.runtime.heartbeat import at_work, start_heartbeat


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()
        settings = Settings.for_networks(args)
        self.stage = Stage(settings)
        self.placement = settings.placement()
        self.guardrail = VideoGuardrail.load(
            settings.checkpoint_dir, settings.deployment, self.placement, settings.exported
        )
        clip = settings.deployment
        blank = torch.zeros(clip.frames, clip.height, clip.width, 3, dtype=torch.uint8)
        settings.warm_up(self.placement, lambda: self.guardrail.apply(blank))

    @at_work
    def execute(self, requests):
        return self.stage.answer_each(requests, self.apply)

    def apply(self, call):
        with self.placement.on_device():
            frames, judgement = self.guardrail.apply(torch.from_numpy(array(call.inputs, "video")))
        return [pb.Tensor("video", frames.numpy()), string_tensor("verdict", judgement.to_json())]
