"""The stage media_encoder: frames -> the bytes of an mp4. See runtime/media/encode.py."""

from cosmos_triton.pipeline.responses import answer_each
from cosmos_triton.pipeline.tensors import array, string_tensor
from cosmos_triton.runtime.heartbeat import at_work, start_heartbeat
from cosmos_triton.runtime.media.encode import encode_mp4, parse_metadata


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()

    @at_work
    def execute(self, requests):
        return answer_each("media_encoder", requests, encode_media)


def encode_media(request):
    video, [metadata] = array(request, "video"), array(request, "metadata")  # video: [T, H, W, 3]
    return [string_tensor("mp4", encode_mp4(video, metadata=parse_metadata(metadata)))]
