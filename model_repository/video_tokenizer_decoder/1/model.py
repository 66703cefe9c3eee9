"""The stage video_tokenizer_decoder: tokens -> video by the discrete tokenizer, instead of the diffusion decoder."""

import torch
import triton_python_backend_utils as pb

from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.stage import Stage
from cosmos_triton.pipeline.tensors import array
from cosmos_triton.runtime.heartbeat import at_work, start_heartbeat
from cosmos_triton.runtime.media.frames import to_uint8, to_unit_range
from cosmos_triton.runtime.video_tokenizer import decode_tokens


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()
        settings = Settings.for_networks(args)
        self.stage = Stage(settings)
        self.device = settings.device
        self.placement = settings.placement()
        self.decoder = settings.loader(self.placement).discrete_decoder()
        clip, config = settings.deployment, self.decoder.config
        grid = (side // config.spatial_compression for side in (clip.height, clip.width))
        blank = torch.zeros(1, config.latent_frames(clip.frames), *grid, dtype=torch.int32, device=self.device)
        settings.warm_up(self.placement, lambda: decode_tokens(self.decoder, blank))

    @at_work
    def execute(self, requests):
        return self.stage.answer_each(requests, self.decode)

    def decode(self, call):
        with self.placement.on_device():
            tokens = torch.from_numpy(array(call.inputs, "tokens")).to(self.device)  # [5, h, w]
            video = to_unit_range(decode_tokens(self.decoder, tokens[None]).float())[0]
            return [pb.Tensor("video", to_uint8(video).cpu().numpy())]
