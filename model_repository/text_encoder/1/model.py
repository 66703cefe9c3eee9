"""The stage text_encoder: prompts -> T5 embeddings. All requests of a batch go through the network together."""

import numpy as np
import triton_python_backend_utils as pb

from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.stage import Stage
from cosmos_triton.pipeline.tensors import array
from cosmos_triton.runtime.heartbeat import at_work, start_heartbeat


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()
        settings = Settings.for_networks(args)
        self.stage = Stage(settings)
        self.placement = settings.placement()
        self.encoder = settings.loader(self.placement).text_encoder()
        settings.warm_up(self.placement, lambda: self.encoder.encode(["a car"]))

    @at_work
    def execute(self, requests):
        return self.stage.answer_together(requests, self.encode)

    def encode(self, calls):
        given = [array(call.inputs, "prompt") for call in calls]  # [b, 1] each
        prompts = [prompt.decode() for prompt in np.concatenate(given).flat]
        with self.placement.on_device():
            contexts = self.encoder.encode(prompts).float().cpu().numpy()  # [B, 512, C]
        ends = np.cumsum([len(own) for own in given])
        return [[pb.Tensor("context", own)] for own in np.split(contexts, ends[:-1])]
