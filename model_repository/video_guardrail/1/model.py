"""The stage video_guardrail: a video -> the video that may be handed out, and what was found in it."""

from dataclasses import asdict

import torch
import triton_python_backend_utils as pb

from cosmos_triton.guardrail.loading import load_video_guardrail
from cosmos_triton.model_repository import glue


class TritonPythonModel:
    def initialize(self, args):
        settings = glue.Settings.for_networks(args)
        self.guardrail = load_video_guardrail(settings.checkpoint_dir, settings.deployment, settings.device)

    def execute(self, requests):
        return glue.answer_each("video_guardrail", requests, self.apply)

    def apply(self, request):
        frames, verdicts, faces = self.guardrail.apply(torch.from_numpy(glue.array(request, "video")))
        last = verdicts[-1]
        verdict = {
            "safe": last.safe,
            "guardrail": last.guardrail,
            "reason": last.reason,
            "checks": [asdict(check) for check in verdicts],
            "faces_blurred": faces,
        }
        return [pb.Tensor("video", frames.numpy()), glue.json_tensor("verdict", verdict)]
