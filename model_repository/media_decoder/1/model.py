"""The stage media_decoder: the bytes of a file -> its last frames. See runtime/media/decode.py."""

import resource

import triton_python_backend_utils as pb

from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.stage import Stage
from cosmos_triton.pipeline.tensors import array, json_tensor, scalar
from cosmos_triton.runtime.heartbeat import at_work, start_heartbeat
from cosmos_triton.runtime.media.decode import decode
from cosmos_triton.runtime.media.fit import SQUARE

# Limit of this process's private memory. The costliest file within the limits takes about half of it. A decompression
# bomb that gets past the header checks fails here instead of exhausting the host's memory.
MEMORY_BYTES = 2 << 30


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()
        self.stage = Stage(Settings.read(args))
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, hard))

    @at_work
    def execute(self, requests):
        return self.stage.answer_each(requests, decode_media)


def decode_media(call):
    decoded = decode(array(call.inputs, "visual_input")[0], scalar(call.inputs, "num_input_frames"))
    height, width = decoded.size
    info: dict[str, object] = {
        "kind": decoded.kind,
        "width": width,
        "height": height,
        "frames": decoded.frames_in_file,
        "fps": decoded.fps,
        "num_input_frames": len(decoded.frames),
    }
    if decoded.pixel_aspect != SQUARE:
        info["pixel_aspect"] = decoded.pixel_aspect.as_integer_ratio()
    return [pb.Tensor("frames", decoded.frames), json_tensor("info", info)]
