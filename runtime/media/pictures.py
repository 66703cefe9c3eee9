"""Decodes a picture with a codec alone, without a demuxer."""

from __future__ import annotations

import av

from cosmos_triton.runtime.media.codecs import Decoded, codec_errors, to_rgb
from cosmos_triton.runtime.media.formats import Format
from cosmos_triton.runtime.media.headers import Header
from cosmos_triton.runtime.media.limits import Limits, incomplete
from cosmos_triton.runtime.media.orientation import is_sideways

_CODECS: dict[Format, str] = {"png": "png", "jpeg": "mjpeg", "webp": "webp"}


def decode_picture(header: Header, limits: Limits) -> Decoded:
    """A picture's pixels. One with more than a clip's frame may have is halved: it is scaled down later in any case.

    Raises:
        InvalidValue: the picture is damaged, or takes too much memory.
    """
    is_halved = header.width * header.height > limits.frame_pixels
    with codec_errors(header.format):
        codec = av.CodecContext.create(_CODECS[header.format], "r")
        codec.thread_count = 1
        # without "explode", the missing part of a damaged jpeg is filled with grey
        codec.options = {"max_pixels": str(limits.picture_pixels), "err_detect": "explode"}
        frames = [*codec.decode(av.Packet(header.coded)), *codec.decode(None)]
        if len(frames) != 1:
            raise incomplete(f"a {header.format} of {len(frames)} pictures")
        size = (frames[0].height, frames[0].width)
        pixels = to_rgb(frames, header.matrix, is_halved=is_halved)
        return Decoded(pixels, "image", size[::-1] if is_sideways(header.matrix) else size, frames_in_file=1, fps=0.0)
