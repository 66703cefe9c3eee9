"""The stage diffusion_decoder: tokens -> video. Decoupled, to tell how far it is; the work is done within execute."""

import torch
import triton_python_backend_utils as pb

from cosmos_triton.model_repository import glue
from cosmos_triton.runtime.frames import to_uint8
from cosmos_triton.runtime.stages import Stages


class TritonPythonModel:
    def initialize(self, args):
        settings = glue.Settings.for_networks(args)
        stages = Stages(settings.deployment, settings.checkpoint_dir, settings.device)
        self.jobs, self.device, self.frames = settings.jobs, settings.device, settings.deployment.frames
        self.decoder, self.generic_context = stages.diffusion_decoder(), stages.generic_context().float()

    def execute(self, requests):
        batch, senders = {}, {}  # by job
        for request in requests:
            sender = request.get_response_sender()
            try:
                job = self.jobs.of(request)
            except glue.Cancelled as error:
                glue.fail_stream("diffusion_decoder", sender, request.request_id(), error)
            else:
                batch[job], senders[job] = request, sender
        if batch:
            self.run(batch, senders)

    def run(self, batch, senders):
        """Answer the jobs of a batch; who cancels is answered at once, and the last to do so ends the work."""

        def on_step(done, total):
            for job in [job for job in senders if not self.jobs.is_wanted(job)]:
                glue.fail_stream("diffusion_decoder", senders.pop(job), job, glue.Cancelled())
            if not senders:
                raise glue.Cancelled
            for sender in senders.values():
                sender.send(pb.InferenceResponse([glue.json_tensor("event", {"done": done, "total": total})]))

        try:
            videos = self.decode(batch.values(), on_step)
        except Exception as error:
            for job, sender in senders.items():
                glue.fail_stream("diffusion_decoder", sender, job, error)
            return
        for job, video in zip(batch, videos, strict=True):
            if job in senders:
                senders[job].send(pb.InferenceResponse([pb.Tensor("video", video[None])]), flags=glue.FINAL)

    def decode(self, requests, on_step):
        """uint8 videos [33, H, W, 3], one a request; the requests of a batch are denoised together."""
        tokens = torch.cat([torch.from_numpy(glue.array(request, "tokens")) for request in requests])  # [B, 5, h, w]
        contexts = [glue.optional_array(request, "context") for request in requests]
        context = torch.cat([self.generic_context[None] if c is None else torch.from_numpy(c) for c in contexts])
        video = self.decoder.decode(
            tokens.to(self.device).long(), context.to(self.device), frames=self.frames, on_step=on_step
        )
        return [to_uint8(clip).cpu().numpy() for clip in video]
