"""Files for the tests of the media stages: well-formed ones, and what an attacker would make of them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from cosmos_triton.tiny.sample_media import encode_jpeg

WIDTH, HEIGHT, FPS = 64, 48, 25
COLOURS = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [200, 200, 200]]], np.uint8)  # of the quadrants
Pixels = NDArray[np.uint8]
SAMPLES = Path(__file__).parent / "media"


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
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    audio: bool = False,
) -> bytes:
    """A file of almost lossless frames [T, H, W, 3]; the index is at the end of it unless `movflags` say otherwise.

    Args:
        options: of the encoder.
        times: when the frames are shown, in 600ths of a second.
    """
    quiet = {
        "libx264": {"qp": "4", "bf": "3"},
        "libx265": {"x265-params": "log-level=none:qp=4"},
        "mpeg4": {"qmax": "2"},
    }
    file = io.BytesIO()
    muxing = {"movflags": movflags} if movflags else {}
    reread = lambda url, flags, options: io.BytesIO(file.getvalue())  # noqa: E731
    with av.open(file, "w", format=container, options=muxing, io_open=reread) as output:
        video = output.add_stream(codec, rate=FPS)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt, video.options = pix_fmt, options or quiet.get(codec, {})
        if times is not None:
            video.codec_context.time_base = Fraction(1, 600)
        if rotation is not None:
            video.set_display_rotation(rotation)
        if audio:
            _add_silence(output)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 600)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    return file.getvalue()


def moving(count: int, width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """Frames [T, H, W, 3] of a camera that pans over noise: each depends on the one before it."""
    noise = np.random.default_rng(0).integers(0, 256, (2 * height, 3 * width, 3), np.uint8)
    return np.stack([noise[i % height :, 3 * i % width :][:height, :width] for i in range(count)])


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


def exif(orientation: int, *, order: str = "<", type: int = 3) -> bytes:
    """A TIFF file of two tags, the second of them the orientation, of TIFF type 3 (SHORT) or 4 (LONG)."""
    value = struct.pack(order + ("HH" if type == 3 else "I"), *((orientation, 0) if type == 3 else (orientation,)))
    make = struct.pack(order + "HHII", 0x010F, 4, 1, 0)
    tag = struct.pack(order + "HHI", 0x0112, type, 1) + value
    return (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, 2) + make + tag + bytes(4)


def xmp(orientation: int) -> bytes:
    return b'<rdf:Description tiff:Make="Cam" tiff:Orientation="%d"/>' % orientation


def with_metadata(picture: bytes, *, exif: bytes = b"", xmp: bytes = b"") -> bytes:
    """A picture as a camera, or a program, writes it that was held another way."""
    if picture.startswith(b"\xff\xd8"):
        parts = [b"Exif\0\0" + exif] * bool(exif) + [b"http://ns.adobe.com/xap/1.0/\0" + xmp] * bool(xmp)
        segments = b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(part)) + part for part in parts)
        return picture[:2] + segments + picture[2:]
    if picture.startswith(b"\x89PNG"):
        chunks = png_chunk(b"eXIf", exif) * bool(exif)
        chunks += png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) * bool(xmp)
        return picture[:33] + chunks + picture[33:]
    canvas = struct.pack("<4sIIHBHB", b"VP8X", 10, 0x0C, WIDTH - 1, 0, HEIGHT - 1, 0)
    body = b"WEBP" + canvas + picture[12:]
    for kind, content in ((b"EXIF", exif), (b"XMP ", xmp)):
        body += (kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)) * bool(content)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def box(mp4: bytes, kind: bytes, number: int = -1) -> bytes:
    """The last box of a kind, or another."""
    starts = [at - 4 for at in range(4, len(mp4)) if mp4.startswith(kind, at)]
    (size,) = struct.unpack_from(">I", mp4, starts[number])
    return mp4[starts[number] :][:size]


def with_box(mp4: bytes, old: bytes, new: bytes) -> bytes:
    """A file whose index is at its end, with a box of the index replaced."""
    at, longer = mp4.rindex(old), len(new) - len(old)
    result = bytearray(mp4)
    start, end = 0, len(mp4)
    while start + 8 <= end and start < at:
        (size,) = struct.unpack_from(">I", mp4, start)
        if at < start + size:
            struct.pack_into(">I", result, start, size + longer)
            start += 8
        else:
            start += size
    return bytes(result[:at]) + new + bytes(result[at + len(old) :])


def with_pixel_aspect(mp4: bytes, width: int, height: int) -> bytes:
    """A file whose sample entry has a box of the pixel aspect, in place of the one of the bit rate."""
    return mp4.replace(box(mp4, b"btrt"), struct.pack(">I4sIII", 20, b"pasp", width, height, 0))


def full_box(kind: bytes, entries: Sequence[bytes]) -> bytes:
    """A box of a table."""
    body = struct.pack(">II", 0, len(entries)) + b"".join(entries)
    return struct.pack(">I4s", 8 + len(body), kind) + body


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
