"""Pictures and clips are shown as ffmpeg and Pillow's `exif_transpose` show them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from cosmos_triton.runtime.media.decode import decode
from cosmos_triton.runtime.media.orientation import ORIENTATIONS
from support import media_files as files

Turn = Callable[[files.Pixels], files.Pixels]

# As in the definition of the tag: where the stored picture's first row and column are shown.
TURNS: dict[int, Turn] = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: np.rot90,
}
PICTURES = {format: files.still(files.quadrants(), format) for format in ("png", "jpeg", "webp")}
CLIP = files.clip(np.stack([files.quadrants()] * 3))
# Upright, the camera's samples are of red, green, blue and yellow quarters.
CAMERA = np.array([[[200, 40, 40], [40, 180, 60]], [[40, 60, 200], [220, 210, 60]]])
NEAR = 4


def assert_turned(data: bytes, turn: Turn) -> None:
    shown = decode(data, 1).frames[0]
    assert shown.shape == turn(files.quadrants()).shape
    assert np.abs(files.corners(shown).astype(int) - turn(files.COLOURS)).max() <= NEAR


def with_matrix(mp4: bytes, box: bytes, matrix: tuple[float, ...]) -> bytes:
    """A file whose movie header or track header has this display matrix, in fixed-point numbers."""
    a, b, c, d = (round(65536 * number) for number in matrix)
    return files.patched(mp4, box, 36 if box == b"mvhd" else 40, struct.pack(">5i", a, b, 0, c, d))


@pytest.mark.parametrize(
    "name", ["o6.webp", "o6.png", "o3.png", "o6_mmlong.jpg", "rot_mvhd90.mp4", "rot_near.mp4", "sar2.mp4"]
)
def test_a_camera_s_file_is_upright(name: str) -> None:
    shown = decode((files.SAMPLES / name).read_bytes(), 1).frames[0]
    assert shown.shape == (192, 320, 3)
    assert np.abs(shown[48::96, 80::160].astype(int) - CAMERA).max() <= NEAR


@pytest.mark.parametrize("type", [3, 4], ids=["short", "long"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("format", PICTURES)
def test_every_orientation_in_exif(format: str, order: str, type: int) -> None:
    for orientation, turn in TURNS.items():
        exif = files.exif(orientation, order=order, type=type)
        assert_turned(files.with_metadata(PICTURES[format], exif=exif), turn)


@pytest.mark.parametrize("format", PICTURES)
def test_every_orientation_in_xmp_where_exif_has_none(format: str) -> None:
    for orientation, turn in TURNS.items():
        assert_turned(files.with_metadata(PICTURES[format], xmp=files.xmp(orientation)), turn)
    both = files.with_metadata(PICTURES[format], exif=files.exif(6), xmp=files.xmp(3))
    assert_turned(both, TURNS[6])


@pytest.mark.parametrize("format", PICTURES)
@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_changes_nothing(format: str, orientation: int) -> None:
    assert_turned(files.with_metadata(PICTURES[format], exif=files.exif(orientation)), TURNS[1])


@pytest.mark.parametrize("format", PICTURES)
def test_damaged_metadata_change_nothing(format: str) -> None:
    exif = files.exif(6)
    for damaged in (exif[:8], exif[:12], b"II*\0" + b"\xff" * 4, b"XX" + exif[2:], exif[:10] + b"\xff" * 8, b"\0"):
        assert_turned(files.with_metadata(PICTURES[format], exif=damaged), TURNS[1])


def test_exif_may_follow_a_png_s_pixels_and_have_the_prefix_of_a_jpeg_s() -> None:
    png = PICTURES["png"]
    assert_turned(png[:-12] + files.png_chunk(b"eXIf", files.exif(6)) + png[-12:], TURNS[6])
    assert_turned(files.with_metadata(png, exif=b"Exif\0\0" + files.exif(6)), TURNS[6])


@pytest.mark.parametrize("box", [b"mvhd", b"tkhd"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_matrix_in_either_header(box: bytes, orientation: int) -> None:
    exact = ORIENTATIONS[orientation]
    for error in (0, 1 / 65536, -1 / 65536, 0.01):
        assert_turned(with_matrix(CLIP, box, tuple(number + error for number in exact)), TURNS[orientation])


def test_matrices_in_both_headers_are_combined() -> None:
    for track, first in TURNS.items():
        for movie, then in TURNS.items():
            data = with_matrix(with_matrix(CLIP, b"tkhd", ORIENTATIONS[track]), b"mvhd", ORIENTATIONS[movie])
            assert_turned(data, lambda x, first=first, then=then: then(first(x)))


def test_pixel_aspect_of_the_container_and_of_the_stream() -> None:
    assert decode((files.SAMPLES / "sar2.mp4").read_bytes(), 1).pixel_aspect == 2
    stream = files.clip(np.stack([files.quadrants()] * 3), options={"x264-params": "sar=3/2"})
    assert decode(stream, 1).pixel_aspect == Fraction(3, 2)
    assert decode(files.with_pixel_aspect(stream, 4, 3), 1).pixel_aspect == Fraction(4, 3)
    turned = with_matrix(stream, b"tkhd", ORIENTATIONS[6])
    assert decode(turned, 1).pixel_aspect == Fraction(2, 3)


def test_a_matrix_that_stretches_is_a_pixel_aspect() -> None:
    assert decode(with_matrix(CLIP, b"tkhd", (2, 0, 0, 1)), 1).pixel_aspect == 2


@pytest.mark.parametrize("terms", [(0, 0), (0, 1), (1, 0), (2**32 - 1, 2**32 - 1)])
def test_a_pixel_aspect_that_is_none_is_square(terms: tuple[int, int]) -> None:
    assert decode(files.with_pixel_aspect(CLIP, *terms), 1).pixel_aspect == 1


def test_a_picture_s_density_is_not_a_pixel_aspect() -> None:
    density = files.png_chunk(b"pHYs", struct.pack(">IIB", 1, 2, 0))
    png = PICTURES["png"]
    assert decode(png[:33] + density + png[33:]).pixel_aspect == 1
    jfif = b"\xff\xe0\0\x10JFIF\0\1\1\0" + struct.pack(">HH", 2, 1) + bytes(2)
    assert decode(b"\xff\xd8" + jfif + PICTURES["jpeg"][2:]).pixel_aspect == 1
