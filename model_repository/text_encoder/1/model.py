"""The stage text_encoder: prompts -> T5 embeddings, as many at once as are waiting."""

from itertools import chain

import triton_python_backend_utils as pb

from cosmos_triton.model_repository import glue
from cosmos_triton.runtime.stages import Stages


class TritonPythonModel:
    def initialize(self, args):
        settings = glue.Settings.for_networks(args)
        self.encoder = Stages(settings.deployment, settings.checkpoint_dir, settings.device).text_encoder()

    def execute(self, requests):
        try:
            prompts = [glue.texts(request, "prompt") for request in requests]
            contexts = self.encoder.encode(list(chain(*prompts))).float().cpu().numpy()  # [B, 512, X]
        except Exception as error:
            code, message = glue.describe(error)
            pb.Logger.log_error(f"text_encoder: {message}")
            return [glue.failure(code, f"text_encoder: {message}") for _ in requests]
        responses, first = [], 0
        for batch in prompts:
            own = contexts[first : first + len(batch)]
            responses.append(pb.InferenceResponse([pb.Tensor("context", own)]))
            first += len(batch)
        return responses
