"""Files for the tests of the media stages: well-formed ones, and what an attacker would make of them."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from cosmos_triton.tiny.sample_media import encode_jpeg

WIDTH, HEIGHT, FPS = 64, 48, 25
COLOURS = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [200, 200, 200]]], np.uint8)  # of the quadrants
Pixels = NDArray[np.uint8]


def quadrants(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """A picture [H, W, 3] that looks different from each side."""
    return COLOURS.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def corners(picture: Pixels) -> Pixels:
    """The colours of the quadrants of a picture: [2, 2, 3]."""
    height, width, _ = picture.shape
    return picture[height // 4 :: height // 2, width // 4 :: width // 2]


def grey(number: int) -> int:
    """The shade that `numbered` gives to a frame."""
    return 16 + 5 * (number % 40)


def numbered(count: int, width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """Frames [T, H, W, 3] that show which they are."""
    return np.stack([np.full((height, width, 3), grey(i), np.uint8) for i in range(count)])


def clip(
    frames: Pixels,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container: str = "mp4",
    movflags: str | None = None,
    rotation: int | None = None,
    audio: bool = False,
) -> bytes:
    """A file of almost lossless frames [T, H, W, 3]; the index is at the end of it unless `movflags` say otherwise."""
    quiet = {
        "libx264": {"qp": "4", "bf": "3"},
        "libx265": {"x265-params": "log-level=none:qp=4"},
        "mpeg4": {"qmax": "2"},
    }
    file = io.BytesIO()
    options = {"movflags": movflags} if movflags else {}
    reread = lambda url, flags, options: io.BytesIO(file.getvalue())  # noqa: E731
    with av.open(file, "w", format=container, options=options, io_open=reread) as output:
        video = output.add_stream(codec, rate=FPS)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt, video.options = pix_fmt, quiet.get(codec, {})
        if rotation is not None:
            video.set_display_rotation(rotation)
        if audio:
            _add_silence(output)
        for picture in frames:
            output.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(video.encode(None))
    return file.getvalue()


def audio_only() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        _add_silence(output)
    return file.getvalue()


def _add_silence(output: av.container.OutputContainer) -> None:
    stream = output.add_stream("aac", rate=48000, layout="mono")
    for i in range(20):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 1024 * i
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def growing_clip() -> bytes:
    """One track whose frames become larger half-way, each size announced by a header inside the stream."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        track = output.add_stream("libx264", rate=FPS)
        track.width, track.height, track.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        time = 0
        for scale in (1, 2):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt = scale * WIDTH, scale * HEIGHT, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, FPS), FPS
            encoder.options = {"bf": "0", "x264-params": "repeat-headers=1"}
            frames = numbered(6, encoder.width, encoder.height)
            pictures = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in frames]
            for packet in [p for picture in [*pictures, None] for p in encoder.encode(picture)]:
                packet.stream, packet.time_base = track, Fraction(1, FPS)
                packet.pts = packet.dts = time
                time += 1
                output.mux(packet)
    return file.getvalue()


def still(picture: Pixels, format: str) -> bytes:
    """uint8 [H, W, 3] as png, jpeg, webp (lossless)."""
    if format == "jpeg":
        return encode_jpeg(picture)
    encoder, pix_fmt = {"png": ("png", "rgb24"), "webp": ("libwebp", "bgra")}[format]
    codec = av.CodecContext.create(encoder, "w")
    codec.height, codec.width = picture.shape[:2]
    codec.pix_fmt, codec.time_base = pix_fmt, Fraction(1, FPS)
    if format == "webp":
        codec.options = {"lossless": "1"}
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes, *, bits: int = 8, colour: int = 6, extra: bytes = b"") -> bytes:
    """A png made by hand of rows that each start with a filter byte; `colour` 0 is grey, 2 RGB, 6 RGBA."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + png_chunk(b"IEND", b"")


def png_bomb() -> bytes:
    """100 megapixels of one bit each, in about 12 kB."""
    return png(10_000, 10_000, bytes(10_000 * (1 + 1250)), bits=1, colour=0)


def with_orientation(jpeg: bytes, orientation: int, *, order: str = "<") -> bytes:
    """A jpeg as a camera writes it that was held another way."""
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    first = struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 2)
    other = struct.pack(order + "HHII", 0x010F, 4, 1, 0)
    exif = b"Exif\0\0" + (b"II" if order == "<" else b"MM") + first + other + entry + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + jpeg[2:]


def patched(data: bytes, box: bytes, offset: int, new: bytes, *, last: bool = False) -> bytes:
    """`data` with `new` written at `offset` in the content of the first, or last, box of that kind."""
    start = (data.rindex(box) if last else data.index(box)) + len(box) + offset
    return data[:start] + new + data[start + len(new) :]


def with_hidden_table(mp4: bytes, shown: int) -> bytes:
    """A file that shows a table of `shown` frames, and has the true one where only a demuxer looks for it.

    The edit list becomes a table of sizes, and the table of samples is wrapped as user data.
    """
    data = patched(mp4, b"elst", 8, struct.pack(">I", shown))
    return data.replace(b"elst", b"stsz", 1).replace(b"stbl", b"udta", 1)
