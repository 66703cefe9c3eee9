"""The stage media_encoder: frames -> the bytes of an mp4. See runtime/media/encode.py."""

from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.stage import Stage
from cosmos_triton.pipeline.tensors import array, string_tensor
from cosmos_triton.runtime.heartbeat import at_work, start_heartbeat
from cosmos_triton.runtime.media.encode import encode_mp4, parse_metadata


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()
        self.stage = Stage(Settings.read(args))

    @at_work
    def execute(self, requests):
        return self.stage.answer_each(requests, encode_media)


def encode_media(call):
    video, [metadata] = array(call.inputs, "video"), array(call.inputs, "metadata")  # video: [T, H, W, 3]
    return [string_tensor("mp4", encode_mp4(video, metadata=parse_metadata(metadata)))]
