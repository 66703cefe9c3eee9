"""Decodes an untrusted file to RGB frames with PyAV: png, jpeg, webp, and mp4 (h264, hevc, mpeg4, av1).

- The demuxer is chosen by the file's content, and the codecs are an allow-list: no playlist, no second file and no
  rare decoder is ever opened.
- Colours are converted by swscale with the matrix and range in the file (BT.601 if there are none). Exact values
  depend on the decoder's version. High dynamic range is not tone-mapped.
- Alpha is dropped, without blending.
- Frames are turned as a clip's display matrix or a picture's orientation (EXIF, or else XMP) says.
- A clip's pixel aspect is passed on. A picture's density is not one: viewers show its pixels as squares.
"""

from __future__ import annotations

from cosmos_triton.runtime.generation_request import check_num_input_frames, num_input_frames_of
from cosmos_triton.runtime.media.clips import decode_clip
from cosmos_triton.runtime.media.codecs import Decoded
from cosmos_triton.runtime.media.headers import read_header
from cosmos_triton.runtime.media.limits import LIMITS, Limits
from cosmos_triton.runtime.media.pictures import decode_picture


def decode(data: bytes, num_input_frames: int | None = None, *, limits: Limits = LIMITS) -> Decoded:
    """The last frames of a clip, or the frame of an image.

    Args:
        num_input_frames: 1 or 9; None for the default of 1 for an image and 9 for a clip.

    Raises:
        InvalidValue: the file is unknown, damaged, too short or over a limit, or the number is not accepted.
    """
    check_num_input_frames(num_input_frames)
    header = read_header(data, limits)
    count = num_input_frames_of(header.kind, num_input_frames)
    return decode_picture(header, limits) if header.kind == "image" else decode_clip(header, count, limits)
