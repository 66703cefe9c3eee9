"""What decoding a picture and a clip share: the result, the codecs' errors, and the way from their frames to RGB.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from cosmos_triton.runtime.generation_request import MediaKind
from cosmos_triton.runtime.media.fit import SQUARE, Size
from cosmos_triton.runtime.media.formats import CONVERT_CLIP, CONVERT_PHOTO, Format
from cosmos_triton.runtime.media.limits import incomplete, refused
from cosmos_triton.runtime.media.orientation import Matrix, upright

Pixels = NDArray[np.uint8]

# Without accurate rounding every value is about 1 too low.
_CONVERSION = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True, slots=True)
class Decoded:
    """`frames`, uint8 [T, H, W, 3], are the last T of `frames_in_file`; `fps` is 0 for an image.

    `size` is the upright size in the file, of which a large image's frame has half; `pixel_aspect` is a pixel's width
    by its height.
    """

    frames: Pixels
    kind: MediaKind
    size: Size
    frames_in_file: int
    fps: float
    pixel_aspect: Fraction = SQUARE


@contextmanager
def codec_errors(format: Format) -> Iterator[None]:
    """Raises InvalidValue where a codec fails."""
    try:
        yield
    except MemoryError:
        raise refused(f"{format} data that take too much memory to decode", "a smaller file") from None
    except av.PatchWelcomeError:
        accepted = CONVERT_CLIP if format == "mp4" else CONVERT_PHOTO
        raise refused(f"{format} data of a kind that cannot be decoded", accepted) from None
    except av.FFmpegError as error:
        raise incomplete(f"{format} data that cannot be decoded ({error.strerror})") from error


def to_rgb(frames: Sequence[av.VideoFrame], matrix: Matrix, *, is_halved: bool = False) -> Pixels:
    """uint8 [T, H, W, 3] of frames of one size, turned upright; of half the size if `is_halved`, by mean values."""
    reformatter = VideoReformatter()
    interpolation = _CONVERSION | (Interpolation.AREA if is_halved else Interpolation.BILINEAR)
    result: Pixels | None = None
    for number, frame in enumerate(frames):
        width, height = ((frame.width + 1) // 2, (frame.height + 1) // 2) if is_halved else (frame.width, frame.height)
        rgb = reformatter.reformat(
            frame, format="rgb24", width=width, height=height, interpolation=interpolation, threads=1
        )
        picture = upright(rgb.to_ndarray(), matrix)
        if result is None:
            result = np.empty((len(frames), *picture.shape), np.uint8)
        result[number] = picture
    assert result is not None, "no frames"
    return result
