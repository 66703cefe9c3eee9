"""The stage media_decoder: a file's bytes -> its last frames. What it accepts, and how, is runtime/media/decode.py."""

import resource

import triton_python_backend_utils as pb

from cosmos_triton.pipeline.responses import answer_each
from cosmos_triton.pipeline.tensors import array, json_tensor, scalar
from cosmos_triton.runtime.media.decode import decode

# Of memory that is this process's own, not shared with the server. The costliest file within the limits takes about
# half of it. One that a codec would unpack without end fails here, instead of taking the machine's memory away.
MEMORY_BYTES = 2 << 30


class TritonPythonModel:
    def initialize(self, args):
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, hard))

    def execute(self, requests):
        return answer_each("media_decoder", requests, read)


def read(request):
    decoded = decode(array(request, "visual_input")[0], scalar(request, "num_input_frames"))
    used, height, width, _ = decoded.frames.shape
    info = {
        "kind": decoded.kind,
        "width": width,
        "height": height,
        "frames": decoded.frames_in_file,
        "fps": decoded.fps,
        "num_input_frames": used,
    }
    return [pb.Tensor("frames", decoded.frames), json_tensor("info", info)]
