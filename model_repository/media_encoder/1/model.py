"""The stage media_encoder: frames -> an mp4 file, made by runtime/media_encode.py."""

import numpy as np
import triton_python_backend_utils as pb

from cosmos_triton.runtime.errors import InvalidInput
from cosmos_triton.runtime.media_encode import encode_mp4, parse_metadata


class TritonPythonModel:
    def execute(self, requests):
        return [answer(request) for request in requests]


def answer(request):
    """One response, whatever the request holds: its neighbours must not suffer."""
    try:
        return pb.InferenceResponse([write(request)])
    except InvalidInput as error:
        pb.Logger.log_info(f"media_encoder {request.request_id()}: refused: {error}")
        return failure("INVALID_ARG", str(error))
    except Exception as error:
        pb.Logger.log_error(f"media_encoder {request.request_id()}: {error!r}")
        return failure("INTERNAL", f"media_encoder: {error!r}")


def write(request):
    video = pb.get_input_tensor_by_name(request, "video").as_numpy()  # [T, H, W, 3]
    metadata = parse_metadata(pb.get_input_tensor_by_name(request, "metadata").as_numpy()[0])
    return pb.Tensor("mp4", np.array([encode_mp4(video, metadata=metadata)], dtype=np.object_))


def failure(code, message):
    # The code is lost on the way through another model, the tag in the message is not.
    return pb.InferenceResponse(error=pb.TritonError(f"[{code}] {message}", getattr(pb.TritonError, code)))
