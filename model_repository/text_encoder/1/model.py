"""The stage text_encoder: prompts -> T5 embeddings. All requests of a batch go through the network together."""

import numpy as np
import triton_python_backend_utils as pb

from cosmos_triton.pipeline.responses import answer_each, failure
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.tensors import texts
from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.heartbeat import at_work, start_heartbeat


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()
        settings = Settings.for_networks(args)
        self.placement = settings.placement()
        self.encoder = settings.loader(self.placement).text_encoder()
        settings.warm_up(self.placement, lambda: self.encoder.encode(["a car"]))

    @at_work
    def execute(self, requests):
        prompts = [valid_prompts(request) for request in requests]
        try:
            contexts = self.encode([prompt for own in prompts for prompt in own])  # [B, 512, C]
        except Exception as error:
            return [failure("text_encoder", request.request_id(), error) for request in requests]
        ends = np.cumsum([len(own) for own in prompts])
        return answer_each("text_encoder", requests, answer, np.split(contexts, ends[:-1]))

    def encode(self, prompts):
        if not prompts:
            return np.empty(0)
        with self.placement.on_device():
            return self.encoder.encode(prompts).float().cpu().numpy()


def valid_prompts(request):
    """The prompts of a request; none if one is not UTF-8, for which `answer` raises."""
    try:
        return texts(request, "prompt")
    except InvalidValue:
        return []


def answer(request, contexts):
    texts(request, "prompt")
    return [pb.Tensor("context", contexts)]
