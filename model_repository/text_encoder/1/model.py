"""The stage text_encoder: prompts -> T5 embeddings, as many at once as are waiting."""

from contextlib import suppress

import numpy as np
import triton_python_backend_utils as pb

from cosmos_triton.pipeline.responses import answer_each, failure
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.tensors import texts
from cosmos_triton.runtime.errors import InvalidValue


class TritonPythonModel:
    def initialize(self, args):
        settings = Settings.for_networks(args)
        self.placement = settings.placement()
        self.encoder = settings.loader(self.placement).text_encoder()

    def execute(self, requests):
        try:
            contexts = iter(self.encode(requests))
        except Exception as error:
            return [failure("text_encoder", request.request_id(), error) for request in requests]

        def answer(request):
            own = [next(contexts) for _ in texts(request, "prompt")]
            return [pb.Tensor("context", np.stack(own))]

        return answer_each("text_encoder", requests, answer)

    def encode(self, requests):
        """Embeddings [512, X] of all prompts, one after the other."""
        prompts = []
        for request in requests:
            with suppress(InvalidValue):  # of which its own answer will tell
                prompts += texts(request, "prompt")
        with self.placement.on_device():
            return self.encoder.encode(prompts).float().cpu().numpy() if prompts else []
