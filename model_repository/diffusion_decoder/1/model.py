"""The stage diffusion_decoder: tokens -> video. Decoupled, to tell how far it is; the work is done within execute."""

import torch
import triton_python_backend_utils as pb

from cosmos_triton.model_repository import glue
from cosmos_triton.runtime.frames import to_uint8
from cosmos_triton.runtime.stages import Stages

FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class EveryoneLeft(Exception):
    """All jobs of the batch were cancelled."""


class TritonPythonModel:
    def initialize(self, args):
        settings = glue.Settings.for_networks(args)
        stages = Stages(settings.deployment, settings.checkpoint_dir, settings.device)
        self.jobs, self.device, self.frames = settings.jobs, settings.device, settings.deployment.frames
        self.decoder, self.generic_context = stages.diffusion_decoder(), stages.generic_context().float()

    def execute(self, requests):
        senders = [request.get_response_sender() for request in requests]
        jobs = [glue.job_of(request) for request in requests]

        def on_step(done, total):
            left = [s.is_cancelled() or self.jobs.is_cancelled(j) for s, j in zip(senders, jobs, strict=True)]
            if all(left):
                raise EveryoneLeft
            for sender in senders:
                sender.send(event({"done": done, "total": total}))

        try:
            videos = self.decode(requests, on_step)
        except EveryoneLeft:
            self.end(senders, glue.tagged("CANCELLED", "diffusion_decoder: the request was cancelled"))
        except Exception as error:
            code, message = glue.describe(error)
            pb.Logger.log_error(f"diffusion_decoder {' '.join(jobs)}: {message}")
            self.end(senders, glue.tagged(code, f"diffusion_decoder: {message}"))
        else:
            for sender, video in zip(senders, videos, strict=True):
                sender.send(pb.InferenceResponse([pb.Tensor("video", video[None])]), flags=FINAL)

    def decode(self, requests, on_step):
        """uint8 videos [33, H, W, 3], one a request; the requests of a batch are denoised together."""
        tokens = torch.cat([torch.from_numpy(glue.array(request, "tokens")) for request in requests])  # [B, 5, h, w]
        contexts = [glue.optional_array(request, "context") for request in requests]
        context = torch.cat([self.generic_context[None] if c is None else torch.from_numpy(c) for c in contexts])
        video = self.decoder.decode(
            tokens.to(self.device).long(), context.to(self.device), frames=self.frames, on_step=on_step
        )
        return [to_uint8(clip).cpu().numpy() for clip in video]

    def end(self, senders, message):
        """An error behind other responses would hang the pipeline that reads them: it is sent as data."""
        for sender in senders:
            sender.send(event({"error": message}), flags=FINAL)


def event(content):
    return pb.InferenceResponse([glue.json_tensor("event", content)])
