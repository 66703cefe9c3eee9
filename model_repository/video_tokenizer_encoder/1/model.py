"""The stage video_tokenizer_encoder: input frames of any size -> their discrete tokens."""

import torch
import triton_python_backend_utils as pb

from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.stage import Stage
from cosmos_triton.pipeline.tensors import array
from cosmos_triton.runtime.generation_request import INPUT_FRAMES
from cosmos_triton.runtime.heartbeat import at_work, start_heartbeat
from cosmos_triton.runtime.media.fit import SQUARE, pixel_aspect_of
from cosmos_triton.runtime.media.frames import to_model_input
from cosmos_triton.runtime.video_tokenizer import encode_input_frames


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()
        settings = Settings.for_networks(args)
        self.stage = Stage(settings)
        self.size = (settings.deployment.height, settings.deployment.width)
        self.device = settings.device
        self.placement = settings.placement()
        self.encoder = settings.loader(self.placement).discrete_encoder()
        settings.warm_up(self.placement, self.warm_up)

    def warm_up(self):
        for frames in INPUT_FRAMES["video"]:
            self.tokens(torch.zeros(frames, *self.size, 3, dtype=torch.uint8))

    @at_work
    def execute(self, requests):
        return self.stage.answer_each(requests, self.encode)

    def encode(self, call):
        terms = call.inputs.get("pixel_aspect")
        aspect = SQUARE if terms is None else pixel_aspect_of(terms.tolist())
        with self.placement.on_device():
            return [pb.Tensor("tokens", self.tokens(torch.from_numpy(array(call.inputs, "frames")), aspect))]

    def tokens(self, frames, pixel_aspect=SQUARE):
        """uint8 frames [T, H, W, 3] -> tokens [t, h, w]."""
        frames = to_model_input(frames.to(self.device), self.size, pixel_aspect)[None]
        return encode_input_frames(self.encoder, frames)[0].cpu().numpy()
