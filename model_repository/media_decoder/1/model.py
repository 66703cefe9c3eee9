"""The stage media_decoder: a file's bytes -> its last frames. What it accepts, and how, is runtime/media_decode.py."""

import json
import resource

import numpy as np
import triton_python_backend_utils as pb

from cosmos_triton.runtime.errors import InvalidInput
from cosmos_triton.runtime.media_decode import decode

# Of memory that is this process's own, not shared with the server. The costliest file within the limits takes about
# half of it. One that a codec would unpack without end fails here, instead of taking the machine's memory away.
MEMORY_BYTES = 2 << 30


class TritonPythonModel:
    def initialize(self, args):
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, hard))

    def execute(self, requests):
        return [answer(request) for request in requests]


def answer(request):
    """One response, whatever the request holds: its neighbours must not suffer."""
    try:
        return pb.InferenceResponse(read(request))
    except InvalidInput as error:
        pb.Logger.log_info(f"media_decoder {request.request_id()}: refused: {error}")
        return failure("INVALID_ARG", str(error))
    except Exception as error:
        pb.Logger.log_error(f"media_decoder {request.request_id()}: {error!r}")
        return failure("INTERNAL", f"media_decoder: {error!r}")


def read(request):
    data = pb.get_input_tensor_by_name(request, "visual_input").as_numpy()[0]
    count = pb.get_input_tensor_by_name(request, "num_input_frames")
    decoded = decode(data, None if count is None else count.as_numpy()[0].item())
    used, height, width, _ = decoded.frames.shape
    info = {
        "kind": decoded.kind,
        "width": width,
        "height": height,
        "frames": decoded.frames_in_file,
        "fps": decoded.fps,
        "num_input_frames": used,
    }
    return [
        pb.Tensor("frames", decoded.frames),
        pb.Tensor("info", np.array([json.dumps(info).encode()], dtype=np.object_)),
    ]


def failure(code, message):
    # The code is lost on the way through another model, the tag in the message is not.
    return pb.InferenceResponse(error=pb.TritonError(f"[{code}] {message}", getattr(pb.TritonError, code)))
