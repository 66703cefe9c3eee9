"""The stage video_tokenizer_encoder: input frames of any size -> their discrete tokens."""

import torch
import triton_python_backend_utils as pb

from cosmos_triton.pipeline.responses import answer_each
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.tensors import array, optional_array
from cosmos_triton.runtime.media.fit import SQUARE, pixel_aspect_of
from cosmos_triton.runtime.media.frames import to_model_input
from cosmos_triton.runtime.video_tokenizer import encode_input_frames


class TritonPythonModel:
    def initialize(self, args):
        settings = Settings.for_networks(args)
        self.size = (settings.deployment.height, settings.deployment.width)
        self.device = settings.device
        self.placement = settings.placement()
        self.encoder = settings.loader(self.placement).discrete_encoder()

    def execute(self, requests):
        with self.placement.on_device():
            return answer_each("video_tokenizer_encoder", requests, self.encode)

    def encode(self, request):
        frames = torch.from_numpy(array(request, "frames")).to(self.device)  # [T, H, W, 3]
        terms = optional_array(request, "pixel_aspect")
        aspect = SQUARE if terms is None else pixel_aspect_of(terms.tolist())
        tokens = encode_input_frames(self.encoder, to_model_input(frames, self.size, aspect)[None])[0]
        return [pb.Tensor("tokens", tokens.cpu().numpy())]
