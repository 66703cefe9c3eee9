"""The stage text_encoder: prompts -> T5 embeddings, as many at once as are waiting."""

from contextlib import suppress

import numpy as np
import triton_python_backend_utils as pb

from cosmos_triton.pipeline import glue
from cosmos_triton.runtime.errors import InvalidInput


class TritonPythonModel:
    def initialize(self, args):
        settings = glue.Settings.for_networks(args)
        self.placement = settings.placement()
        self.encoder = settings.stages(self.placement).text_encoder()

    def execute(self, requests):
        try:
            contexts = iter(self.encode(requests))
        except Exception as error:
            return [glue.failure("text_encoder", request.request_id(), error) for request in requests]

        def answer(request):
            own = [next(contexts) for _ in glue.texts(request, "prompt")]
            return [pb.Tensor("context", np.stack(own))]

        return glue.answer_each("text_encoder", requests, answer)

    def encode(self, requests):
        """Embeddings [512, X] of all prompts, one after the other."""
        prompts = []
        for request in requests:
            with suppress(InvalidInput):  # of which its own answer will tell
                prompts += glue.texts(request, "prompt")
        with self.placement.at_work():
            return self.encoder.encode(prompts).float().cpu().numpy() if prompts else []
