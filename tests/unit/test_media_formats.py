"""Pictures and containers as people have them: what is accepted looks right, what is not is named."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.media.decode import decode
from cosmos_triton.runtime.media.headers import read_header
from cosmos_triton.runtime.media.limits import LIMITS, Limits
from support import media_files as files
from support.paths import ROOT

NEAR = 6


def refusal(data: bytes) -> InvalidValue:
    with pytest.raises(InvalidValue) as caught:
        decode(data)
    return caught.value


def sample(name: str) -> bytes:
    return (files.SAMPLES / name).read_bytes()


@pytest.mark.parametrize(
    ("codec", "container", "name"),
    [
        ("libvpx-vp9", "webm", "webm"),
        ("libx264", "matroska", "mkv"),
        ("mpeg4", "avi", "avi"),
        ("libx264", "flv", "flv"),
        ("libx264", "mpegts", "mpeg transport stream"),
        ("mpeg2video", "mpeg", "mpeg program stream"),
        ("mpeg2video", "mpeg2video", "mpeg video stream"),
        ("libx264", "h264", "raw h264 or hevc stream"),
        ("wmv2", "asf", "wmv or asf"),
        ("libsvtav1", "ivf", "ivf"),
    ],
)
def test_another_container_is_named_with_how_to_convert_it(codec: str, container: str, name: str) -> None:
    error = refusal(files.clip(files.numbered(9), codec=codec, container=container))
    assert error.value == f"a file in {name} format"
    assert "mp4 clip; convert it: ffmpeg -i INPUT -c:v libx264" in error.accepted


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (sample("animated.gif"), "gif"),
        (sample("photo.tiff"), "tiff"),
        (sample("photo.avif"), "avif"),
        (sample("photo.heic"), "heic"),
        (b"BM" + bytes(60), "bmp"),
        (b"\xff\x0a" + bytes(60), "jpeg xl"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "jpeg 2000"),
        (b"8BPS\0\1", "psd"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "heif"),
        (b"\0\0\0\x18ftypavis\0\0\0\0msf1avif", "avif"),
        (sample("animated.webp"), "animated webp"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_picture_format_is_named_with_how_to_convert_it(data: bytes, name: str) -> None:
    error = refusal(data)
    assert name in str(error.value)
    assert "ffmpeg -i INPUT" in error.accepted or "export it as jpeg" in error.accepted


@pytest.mark.parametrize(("codec", "coding"), [("mjpeg", "mp4v"), ("prores", "apcn"), ("libvpx-vp9", "vp09")])
def test_another_codec_is_named_with_how_to_convert_it(codec: str, coding: str) -> None:
    pix_fmt = {"mjpeg": "yuvj420p", "prores": "yuv422p10le"}.get(codec, "yuv420p")
    container = "mov" if codec == "prores" else "mp4"
    error = refusal(files.clip(files.numbered(9), codec=codec, pix_fmt=pix_fmt, container=container))
    assert error.value == f"an mp4 whose video is of another codec ({coding!r})"
    assert "convert it: ffmpeg -i INPUT" in error.accepted


def test_a_clip_with_the_brand_of_a_sequence_of_pictures_is_a_clip() -> None:
    data = files.patched(files.clip(files.numbered(9)), b"ftyp", 0, b"hevc")
    assert decode(data).frames_in_file == 9


@pytest.mark.parametrize("name", ["cmyk.jpg", "progressive.jpg", "animated.png"])
def test_an_unusual_picture_is_shown_in_its_colours(name: str) -> None:
    decoded = decode(sample(name))
    assert decoded.frames.shape == (1, files.HEIGHT, files.WIDTH, 3)
    assert np.abs(files.corners(decoded.frames[0]).astype(int) - files.COLOURS).max() <= NEAR


def test_a_jpeg_that_the_codec_does_not_know_is_not_called_damaged() -> None:
    error = refusal(sample("cmyk_422.jpg"))
    assert error.value == "jpeg data of a kind that cannot be decoded"
    assert "export it as jpeg" in error.accepted


@pytest.mark.parametrize(
    ("bits", "colour"),
    [
        (1, 0),
        (2, 0),
        (4, 0),
        (8, 0),
        (16, 0),
        (8, 2),
        (16, 2),
        (1, 3),
        (2, 3),
        (4, 3),
        (8, 3),
        (8, 4),
        (16, 4),
        (8, 6),
        (16, 6),
    ],
)
def test_every_kind_of_png(bits: int, colour: int) -> None:
    """Black and white columns."""
    channels = {0: [0], 2: [0, 0, 0], 3: [0], 4: [0, -1], 6: [0, 0, 0, -1]}[colour]  # -1: alpha
    white = 1 if colour == 3 else 2**bits - 1
    values = [white if x % 2 or c else 0 for x in range(16) for c in channels]
    number = int("".join(format(value, f"0{bits}b") for value in values), 2)
    row = b"\0" + number.to_bytes(len(values) * bits // 8, "big")
    palette = files.png_chunk(b"PLTE", bytes(3) + b"\xff" * 3) if colour == 3 else b""
    frame = decode(files.png(16, 2, row * 2, bits=bits, colour=colour, extra=palette)).frames[0]
    assert frame.shape == (2, 16, 3)
    assert (frame[:, ::2] <= 1).all()
    assert (frame[:, 1::2] >= 254).all()


@pytest.mark.parametrize("pix_fmt", ["yuvj420p", "yuvj422p", "yuvj444p"])
@pytest.mark.parametrize("size", [(63, 47), (64, 48), (1, 1), (17, 2)])
def test_every_chroma_and_odd_size_of_a_jpeg(pix_fmt: str, size: tuple[int, int]) -> None:
    width, height = size
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt = width, height, pix_fmt
    codec.time_base, codec.options = Fraction(1, 25), {"strict": "-1", "qmin": "1", "qmax": "2"}
    picture = np.full((height, width, 3), (90, 90, 90), np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
    data = b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
    frames = decode(data).frames
    assert frames.shape == (1, height, width, 3)
    assert np.abs(frames.astype(int) - 90).max() <= NEAR


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_picture_is_halved_and_keeps_its_size_in_words(format: str, orientation: int) -> None:
    data = files.with_metadata(files.still(files.quadrants(), format), exif=files.exif(orientation))
    decoded = decode(data, limits=Limits(frame_pixels=files.WIDTH * files.HEIGHT - 1))
    turned = np.rot90(files.COLOURS, 0 if orientation == 1 else -1)
    size = (files.HEIGHT, files.WIDTH) if orientation == 1 else (files.WIDTH, files.HEIGHT)
    assert decoded.size == size
    assert decoded.frames.shape == (1, size[0] // 2, size[1] // 2, 3)
    assert np.abs(files.corners(decoded.frames[0]).astype(int) - turned).max() <= NEAR


def test_a_halved_picture_has_the_means_of_its_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    limits = Limits(frame_pixels=1000)
    halved = decode(files.still(noise, "png"), limits=limits).frames[0]
    assert np.abs(halved - noise.reshape(24, 2, 32, 2, 3).mean((1, 3))).max() <= 1
    assert decode(files.still(noise[1:, 1:], "png"), limits=limits).frames.shape == (1, 24, 32, 3)


def zeros(width: int, height: int, *, bits: int, colour: int) -> bytes:
    """A black png, whose pixels never lie in memory."""
    row = bytes(1 + width * {0: 1, 2: 3, 6: 4}[colour] * bits // 8)
    compressor = zlib.compressobj(1)
    data = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    empty = files.png(width, height, b"", bits=bits, colour=colour)
    return empty.replace(files.png_chunk(b"IDAT", zlib.compress(b"")), files.png_chunk(b"IDAT", data))


WITHIN_A_GIGABYTE = """
import resource, sys
from pathlib import Path

import torch
from cosmos_triton.runtime.media.decode import decode
from cosmos_triton.runtime.media.frames import to_model_input

def used():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) << 10

for path in sys.argv[1:]:
    data = Path(path).read_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (used() + (1 << 30), resource.RLIM_INFINITY))
    frames = decode(data).frames
    print(path, *to_model_input(torch.from_numpy(frames), (160, 256)).shape)
"""


def test_any_picture_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    sizes = [(8192, 6144, 16, 6), (8000, 6000, 8, 2), (12_000, 1, 8, 2), (1, 262_144, 8, 2), (262_144, 190, 8, 6)]
    paths = [tmp_path / f"{number}.png" for number, _ in enumerate(sizes)]
    for path, (width, height, bits, colour) in zip(paths, sizes, strict=True):
        path.write_bytes(zeros(width, height, bits=bits, colour=colour))
    command = [sys.executable, "-c", WITHIN_A_GIGABYTE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.splitlines() == [f"{path} 3 1 160 256" for path in paths], done.stderr


@pytest.mark.parametrize(
    ("width", "height", "accepted"),
    [
        (8192, 6145, "50331648 pixels a picture"),
        (262_145, 1, "262144 pixels a side"),
        (1, 262_145, "262144 pixels a side"),
    ],
)
def test_a_picture_over_a_limit_names_its_shape(width: int, height: int, accepted: str) -> None:
    error = refusal(files.png(width, height, b"\0"))
    assert error.value == f"png of {width}x{height} pixels"
    assert error.accepted == f"at most {accepted}"


def mutations(data: bytes, count: int) -> list[bytes]:
    """Copies with a few bytes changed, most of them in what the header readers read."""
    rng = np.random.default_rng(len(data))
    start = data.rindex(b"moov") if b"moov" in data else 0
    copies = []
    for _ in range(count):
        copy = bytearray(data)
        for at in rng.integers(start, min(len(data), start + 800), rng.integers(1, 8)):
            copy[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
        copies.append(bytes(copy[: rng.integers(len(copy))] if rng.random() < 0.1 else copy))
    return copies


FUZZED: dict[str, Callable[[], bytes]] = {
    **{path.name: path.read_bytes for path in sorted(files.SAMPLES.iterdir())},
    "xmp.png": lambda: files.with_metadata(files.still(files.quadrants(), "png"), exif=files.exif(6), xmp=files.xmp(3)),
    "xmp.jpg": lambda: files.with_metadata(
        files.still(files.quadrants(), "jpeg"), exif=files.exif(6), xmp=files.xmp(3)
    ),
    "xmp.webp": lambda: files.with_metadata(
        files.still(files.quadrants(), "webp"), exif=files.exif(6), xmp=files.xmp(3)
    ),
    "pasp.mp4": lambda: files.with_pixel_aspect(files.clip(files.numbered(9, 16, 16)), 4, 3),
}


@pytest.mark.parametrize("name", FUZZED)
def test_a_mutated_file_is_read_or_refused(name: str) -> None:
    fields = set()
    for number, data in enumerate(mutations(FUZZED[name](), 400)):
        try:
            header = read_header(data, LIMITS)
            assert len(header.coded) <= len(data) + 8
            if number % 10 == 0:
                decode(data, 1)
        except InvalidValue as error:
            fields.add(error.field)
    assert fields <= {"visual_input", "num_input_frames"}
