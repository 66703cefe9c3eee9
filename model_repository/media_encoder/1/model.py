"""The stage media_encoder: frames -> an mp4 file, made by runtime/media/encode.py."""

from cosmos_triton.pipeline import glue
from cosmos_triton.runtime.media.encode import encode_mp4, parse_metadata


class TritonPythonModel:
    def execute(self, requests):
        return glue.answer_each("media_encoder", requests, write)


def write(request):
    video, [metadata] = glue.array(request, "video"), glue.array(request, "metadata")  # video: [T, H, W, 3]
    return [glue.string_tensor("mp4", encode_mp4(video, metadata=parse_metadata(metadata)))]
