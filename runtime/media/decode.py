"""Decodes an untrusted file to RGB frames with PyAV: png, jpeg, webp, and mp4 (h264, hevc, mpeg4, av1).

Only the last frames of a clip are used. The whole clip is decoded, and no more than those frames are kept in memory.

- The demuxer is chosen by the file's content, and the codecs are an allow-list: no playlist, no second file and no
  rare decoder is ever opened.
- Colours are converted by swscale with the matrix and range in the file (BT.601 if there are none). Exact values
  depend on the decoder's version. High dynamic range is not tone-mapped.
- Alpha is dropped, without blending.
- Frames are rotated as the display matrix of an mp4 or the EXIF orientation of a jpeg says.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.generation_request import MediaKind, check_num_input_frames, num_input_frames_of
from cosmos_triton.runtime.media.headers import Header, read_header
from cosmos_triton.runtime.media.limits import LIMITS, MIB, Limits, incomplete, refused
from cosmos_triton.runtime.media.mp4_boxes import Matrix

CLIP_CODECS = ("h264", "hevc", "mpeg4", "libdav1d")
STILL_CODECS = {"png": "png", "jpeg": "mjpeg", "webp": "webp"}

# Without accurate rounding every value is about 1 too low.
_CONVERSION = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

Pixels = NDArray[np.uint8]
Frame = TypeVar("Frame")


@dataclass(frozen=True, slots=True)
class Decoded:
    """`frames`, uint8 [T, H, W, 3], are the last T of `frames_in_file`; `fps` is 0 for an image."""

    frames: Pixels
    kind: MediaKind
    frames_in_file: int
    fps: float


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
    return _decode_image(header, limits) if header.kind == "image" else _decode_clip(header, count, limits)


def _decode_image(header: Header, limits: Limits) -> Decoded:
    with _codec_errors(header):
        codec = av.CodecContext.create(STILL_CODECS[header.format], "r")
        codec.thread_count = 1
        # without "explode", the missing part of a damaged jpeg is filled with grey
        codec.options = _codec_options(limits) | {"err_detect": "explode"}
        frames = [*codec.decode(av.Packet(header.coded)), *codec.decode(None)]
        if len(frames) != 1:
            raise incomplete(f"a {header.format} of {len(frames)} pictures")
        return Decoded(_to_rgb(frames, header.matrix), kind="image", frames_in_file=1, fps=0.0)


def _decode_clip(header: Header, count: int, limits: Limits) -> Decoded:
    _check_kept(header.width, header.height, count, limits)
    deadline = time.monotonic() + limits.decode_seconds
    # One thread a clip: several clips may be decoded at the same time.
    options = _codec_options(limits) | {"codec_whitelist": ",".join(CLIP_CODECS), "threads": "1"}
    with (
        _codec_errors(header),
        av.open(io.BytesIO(header.coded), format="mp4", options=options, metadata_errors="replace") as container,
    ):
        stream = next((s for s in container.streams.video if Disposition.attached_pic not in s.disposition), None)
        if stream is None or stream.codec_context is None or stream.codec_context.codec.name not in CLIP_CODECS:
            raise refused("an mp4 whose video is of another codec", "h264, hevc, mpeg4 or av1 video")
        stream.codec_context.options = options
        fps = float(stream.average_rate or 0)
        frames = _frames(container.demux(stream), count, limits, deadline)
        seen, kept = last_frames(frames, count)
        return Decoded(_to_rgb(kept, header.matrix), kind="video", frames_in_file=seen, fps=fps)


def last_frames(frames: Iterable[Frame], count: int) -> tuple[int, list[Frame]]:
    """The number of frames in a clip, and the last `count` of them. No more than those are kept in memory.

    Raises:
        InvalidValue: the clip has fewer.
    """
    kept: deque[Frame] = deque(maxlen=count)
    seen = 0
    for frame in frames:
        seen += 1
        kept.append(frame)
    if seen < count:
        few = f"{count} of a clip of {seen} frames"
        raise InvalidValue("num_input_frames", few, "1 or 9, and no more than the clip has")
    return seen, list(kept)


def _frames(
    packets: Iterable[av.Packet[av.VideoStream]], count: int, limits: Limits, deadline: float
) -> Iterator[av.VideoFrame]:
    """All frames of a clip, checked against the limits again: the header may have lied.

    Args:
        count: how many frames will be kept.
        deadline: `time.monotonic()` after which decoding is given up.
    """
    size: tuple[int, int] | None = None
    seen = 0
    for number, packet in enumerate(packets):
        if time.monotonic() > deadline:
            seconds = f"{limits.decode_seconds:.10g} seconds"
            raise refused(f"a clip that takes more than {seconds} to decode", f"a clip that decodes within {seconds}")
        for frame in packet.decode():
            seen += 1
            if frame.is_corrupt:
                raise incomplete(f"an mp4 whose frame {seen} is damaged")
            if size is None:
                size = (frame.width, frame.height)
                _check_kept(*size, count, limits)
            elif (frame.width, frame.height) != size:
                sizes = f"{size[0]}x{size[1]} to {frame.width}x{frame.height}"
                raise refused(f"a clip that goes from {sizes} at frame {seen}", "frames of one size")
            yield frame
        if max(seen, number) > limits.frames:  # the last packet is empty: it flushes the codec
            raise refused(f"a clip of more than {limits.frames} frames", f"1 to {limits.frames} frames")
    if not seen:
        raise incomplete("an mp4 of which no frame can be decoded")


def _check_kept(width: int, height: int, count: int, limits: Limits) -> None:
    size = 3 * width * height * count
    if size > limits.decoded_bytes:
        raise refused(
            f"{count} frames of {width}x{height} pixels, {size / MIB:.0f} MiB when decoded",
            f"at most {limits.decoded_bytes // MIB} MiB",
        )


def _codec_options(limits: Limits) -> dict[str, str]:
    return {"max_pixels": str(limits.frame_pixels)}


@contextmanager
def _codec_errors(header: Header) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise refused(f"{header.format} data that take too much memory to decode", "a smaller file") from None
    except av.FFmpegError as error:
        raise incomplete(f"{header.format} data that cannot be decoded ({error.strerror})") from error


def _to_rgb(frames: list[av.VideoFrame], matrix: Matrix) -> Pixels:
    """uint8 [T, H, W, 3], rotated upright."""
    reformatter = VideoReformatter()
    rgb = (reformatter.reformat(frame, format="rgb24", interpolation=_CONVERSION, threads=1) for frame in frames)
    return np.stack([_upright(picture.to_ndarray().astype(np.uint8, copy=False), matrix) for picture in rgb])


def _upright(pixels: Pixels, matrix: Matrix) -> Pixels:
    """[H, W, 3] rotated by quarter turns and mirrored as `matrix` says. Any other matrix is ignored."""
    a, b, c, d = matrix
    if a == d == 0 and b and c:
        pixels, flip_x, flip_y = pixels.transpose(1, 0, 2), c < 0, b < 0
    elif b == c == 0 and a and d:
        flip_x, flip_y = a < 0, d < 0
    else:
        return pixels
    return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
