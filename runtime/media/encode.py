"""Encodes RGB frames to the bytes of an mp4 file with PyAV: H.264, yuv420p, 25 frames per second.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

from cosmos_triton.runtime.errors import InvalidValue

FPS = 25
MAX_SIDE = 4096  # pixels; the encoder itself takes up to 16384, in gigabytes of memory
MAX_METADATA_BYTES = 1 << 16

# Chosen for speed. 33 frames of 640x1024 take 0.32 to 0.35 s of CPU time and 0.5 to 0.75 MB, at a PSNR of 43 to 45 dB
# (four clips). Without "zerolatency" (B-frames and lookahead, crf 17) it takes 0.38 to 0.40 s; size and PSNR are then
# better for some clips and worse for others.
# The bytes depend on the number of threads, so it is fixed: the same frames give the same file on every machine.
_X264 = {"preset": "superfast", "tune": "zerolatency", "crf": "18"}
_THREADS = 2

_CONVERSION = Interpolation.BILINEAR | Interpolation.ACCURATE_RND


def encode_mp4(video: NDArray[np.uint8], *, metadata: Mapping[str, str]) -> bytes:
    """An mp4 of uint8 frames [T, H, W, 3]. The same arguments give the same bytes.

    `metadata` is written as QuickTime `mdta` entries, under its own keys. The index precedes the frames ("faststart"),
    so that players can start before the whole file has arrived.

    Raises:
        InvalidValue: another shape or dtype, no frames, or a height or width that is odd, which yuv420p cannot have, or
            too large.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise InvalidValue("video", f"{video.dtype} {list(video.shape)}", "uint8 [T, H, W, 3], none of them 0")
    height, width = video.shape[1:3]
    if height % 2 or width % 2 or max(height, width) > MAX_SIDE:
        raise InvalidValue("video", f"{width}x{height} pixels", f"an even width and height of up to {MAX_SIDE}")

    file = io.BytesIO()
    container = av.open(
        file,
        "w",
        format="mp4",
        options={"movflags": "faststart+use_metadata_tags"},
        # To move the index to the front, the muxer opens what it has written as a second file.
        io_open=lambda url, flags, options: io.BytesIO(file.getvalue()),
    )
    with container:
        container.metadata.update(metadata)
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = _X264
        context = stream.codec_context
        context.thread_count = _THREADS
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        reformatter = VideoReformatter()
        for picture in video:  # [H, W, 3]
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(picture, format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=_CONVERSION,
                threads=_THREADS,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def parse_metadata(text: bytes) -> dict[str, str]:
    """The `metadata` of `encode_mp4` from JSON.

    Raises:
        InvalidValue: not a flat JSON object of strings that can be written as UTF-8, or too long.
    """
    accepted = "a JSON object of strings"
    if len(text) > MAX_METADATA_BYTES:
        raise InvalidValue("metadata", f"{len(text)} bytes", f"{accepted}, up to {MAX_METADATA_BYTES} bytes")
    try:
        metadata = json.loads(text)
        json.dumps(metadata, ensure_ascii=False).encode()  # a lone surrogate cannot be
    except (ValueError, RecursionError) as error:
        raise InvalidValue("metadata", f"{text[:40]!r} ({error})", accepted) from None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidValue("metadata", f"{text[:40]!r}", accepted)
    return metadata
