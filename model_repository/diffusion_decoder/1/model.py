"""The stage diffusion_decoder: tokens -> video; the requests of a batch are denoised together."""

from contextlib import suppress

import torch
import triton_python_backend_utils as pb

from cosmos_triton.pipeline.errors import Cancelled
from cosmos_triton.pipeline.responses import answer_each
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.tensors import array, optional_array
from cosmos_triton.runtime.media.frames import to_uint8


class TritonPythonModel:
    def initialize(self, args):
        settings = Settings.for_networks(args)
        self.placement = settings.placement()
        loader = settings.loader(self.placement)
        self.jobs, self.device, self.frames = settings.jobs, settings.device, settings.deployment.frames
        self.decoder, self.generic_context = loader.diffusion_decoder(), loader.generic_context().float()

    def execute(self, requests):
        batch, error = {}, None
        for request in requests:
            with suppress(Cancelled):
                batch[self.jobs.of(request)] = request
        try:
            videos = self.decode(batch) if batch else {}
        except Exception as caught:
            error = caught

        def answer(request):
            job = self.jobs.of(request)
            if error is not None:
                raise error
            return [pb.Tensor("video", videos[job])]

        return answer_each("diffusion_decoder", requests, answer)

    def decode(self, batch):
        """uint8 videos [1, 33, H, W, 3] by job.

        Raises:
            Cancelled: nobody waits for any of them any more. Who leaves others behind has the work done for nothing.
        """

        def on_step(done, total):
            waited_for = 0
            for job in batch:
                with suppress(Cancelled):
                    self.jobs.report(job, "diffusion_decoder", done, total)
                    waited_for += 1
            if not waited_for:
                raise Cancelled

        requests = batch.values()
        tokens = torch.cat([torch.from_numpy(array(request, "tokens")) for request in requests])  # [B, 5, h, w]
        contexts = [optional_array(request, "context") for request in requests]
        context = torch.cat([self.generic_context[None] if c is None else torch.from_numpy(c) for c in contexts])
        with self.placement.on_device():
            video = self.decoder.decode(
                tokens.to(self.device).long(), context.to(self.device), frames=self.frames, on_step=on_step
            )
            clips = [to_uint8(clip)[None].cpu().numpy() for clip in video]
            del video
        return dict(zip(batch, clips, strict=True))
