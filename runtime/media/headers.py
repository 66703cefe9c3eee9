"""Reads a file's header without a codec, to refuse decompression bombs and damaged files before anything is decoded.

The format is recognised by the first bytes, never by a file name.

Why not Pillow: `Image.open` reads any number of chunks or segments before its size can be checked. A file of 64 MiB
that consists of empty ones keeps it busy for 20 to 40 s. It also does not notice a truncated file, or count the scans
of a progressive jpeg, and its result cannot be used to strip metadata from what the codec gets to see.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from cosmos_triton.runtime.generation_request import MediaKind
from cosmos_triton.runtime.media.limits import MIB, Limits, incomplete, refused
from cosmos_triton.runtime.media.mp4_boxes import UPRIGHT, Matrix, read_mp4

Format = Literal["png", "jpeg", "webp", "mp4"]

FILES = "a png, jpeg or webp image, or an mp4 clip"
MAX_PARTS = 50_000  # chunks of a png or segments of a jpeg, which may be as short as 4 bytes
# Each scan of a progressive jpeg costs a pass over the whole image and may be a few bytes long. Encoders write some 10.
MAX_JPEG_SCANS = 100

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The chunks that the codec gets. Text, profiles and animation can be decompression bombs too; tRNS is transparency.
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_VP8X_ANIMATED = 0x02

# Markers of a jpeg: start of scan, start of frame (all codings), and metadata: EXIF, profiles, previews, comments.
# The application segments JFIF (0xE0) and Adobe (0xEE) say how to decode and are kept.
_SCAN = 0xDA
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_EXIF = 0xE1
_METADATA = frozenset((*range(0xE1, 0xEE), 0xEF, 0xFE))

_ORIENTATION = 0x0112
_EXIF_MATRICES: dict[int, Matrix] = {
    1: UPRIGHT,
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


@dataclass(frozen=True, slots=True)
class Header:
    """Size and number of frames as the file claims them, and `coded`, the file without what the codec does not need.

    `matrix` is the display matrix: pixel (x, y) is shown at (a x + c y, b x + d y), up to a translation.
    """

    format: Format
    width: int
    height: int
    coded: bytes = field(repr=False)
    frames: int = 1
    matrix: Matrix = UPRIGHT

    @property
    def kind(self) -> MediaKind:
        return "video" if self.format == "mp4" else "image"


def read_header(data: bytes, limits: Limits) -> Header:
    """Recognise a file and check what it claims against `limits`.

    Raises:
        InvalidValue: the format is unknown, or the file is damaged, truncated, or over a limit.
    """
    if not data:
        raise refused("0 bytes", FILES)
    if len(data) > limits.file_bytes:
        raise refused(f"{len(data)} bytes", f"at most {limits.file_bytes} bytes ({limits.file_bytes // MIB} MiB)")
    format = _recognise(data)
    try:
        header = _read_mp4(data, limits) if format == "mp4" else _IMAGE_READERS[format](data)
    except (struct.error, IndexError):
        raise incomplete(f"{format} data whose header is cut or damaged") from None
    if header.width * header.height > limits.frame_pixels:
        size = f"{format} of {header.width}x{header.height} pixels"
        raise refused(size, f"at most {limits.frame_pixels} pixels a frame")
    return header


def _recognise(data: bytes) -> Format:
    if data.startswith(_PNG_SIGNATURE):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return "mp4"
    raise refused(f"{len(data)} bytes of an unknown format, starting with {data[:12]!r}", FILES)


def _read_mp4(data: bytes, limits: Limits) -> Header:
    track = read_mp4(data, limits)
    return Header("mp4", track.width, track.height, data, frames=track.samples, matrix=track.matrix)


def _png(data: bytes) -> Header:
    chunks = list(_png_chunks(data))
    if chunks[0][0] != b"IHDR":
        raise incomplete("a png without a header")
    width, height = struct.unpack_from(">II", data, len(_PNG_SIGNATURE) + 8)
    kept = b"".join(data[start:end] for kind, start, end in chunks if kind in _PNG_CHUNKS)
    return Header("png", width, height, _PNG_SIGNATURE + kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk up to and including IEND."""
    start = len(_PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length  # length, type and checksum are 4 bytes each
        if end > len(data):
            raise incomplete(f"a png of {len(data)} bytes, cut inside chunk {kind!r}")
        yield kind, start, end
        if kind == b"IEND":
            return
        start = end
    raise refused(f"a png of more than {MAX_PARTS} chunks", f"at most {MAX_PARTS} chunks")


def _jpeg(data: bytes) -> Header:
    kept, width, height, matrix = [data[:2]], 0, 0, UPRIGHT
    scan = 0
    for marker, start, scan in _jpeg_segments(data):
        segment = data[start:scan]
        if marker in _FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", segment, 5)
        elif marker == _EXIF:
            matrix = _exif_matrix(segment[4:]) or matrix
        if marker not in _METADATA:
            kept.append(segment)
    end = data.find(b"\xff\xd9", scan)  # neither this nor another marker occurs inside coded data
    if not width or end < 0:
        raise incomplete(f"a jpeg of {len(data)} bytes without {'an end' if width else 'a size'}")
    scans = 1 + data.count(b"\xff\xda", scan, end)
    if scans > MAX_JPEG_SCANS:
        raise refused(f"a jpeg of {scans} scans", f"at most {MAX_JPEG_SCANS} scans")
    return Header("jpeg", width, height, b"".join(kept) + data[scan : end + 2], matrix=matrix)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment up to and including the header of the first scan."""
    start = 2
    for _ in range(MAX_PARTS):
        prefix, marker, length = struct.unpack_from(">BBH", data, start)
        if prefix != 0xFF:
            raise incomplete("a jpeg with a damaged header")
        if marker == 0xFF:  # a fill byte
            start += 1
            continue
        end = start + 2 + length
        yield marker, start, end
        if marker == _SCAN:
            return
        start = end
    raise refused(f"a jpeg of more than {MAX_PARTS} segments", f"at most {MAX_PARTS} segments")


def _exif_matrix(exif: bytes) -> Matrix | None:
    """The display matrix for the orientation in an EXIF segment, which is a TIFF file; None if it has none."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or tiff == exif:
        return None
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for i in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * i)
            if tag == _ORIENTATION:
                return _EXIF_MATRICES.get(value)
    except struct.error:  # damaged metadata; the image itself may be intact
        pass
    return None


def _webp(data: bytes) -> Header:
    (riff_size,) = struct.unpack_from("<I", data, 4)
    if riff_size + 8 > len(data):
        raise incomplete(f"a webp of {len(data)} bytes that announces {riff_size + 8}")
    kind, body = data[12:16], 20
    if kind == b"VP8 ":  # a frame tag of 3 bytes, a start code of 3, then two sizes of 14 bits
        width, height = (field & 0x3FFF for field in struct.unpack_from("<HH", data, body + 6))
    elif kind == b"VP8L":  # a signature byte, then two sizes of 14 bits, each less one
        (sizes,) = struct.unpack_from("<I", data, body + 1)
        width, height = (sizes & 0x3FFF) + 1, (sizes >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":  # flags, 3 reserved bytes, then two sizes of 24 bits, each less one
        if data[body] & _VP8X_ANIMATED:
            raise refused("an animated webp", "a still webp, or an mp4 clip")
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, body + 4)
        width, height = (high_width << 16 | low_width) + 1, (high_height << 16 | low_height) + 1
    else:
        raise incomplete(f"a webp that starts with chunk {kind!r}")
    return Header("webp", width, height, data[: riff_size + 8])


_IMAGE_READERS: dict[Format, Callable[[bytes], Header]] = {"png": _png, "jpeg": _jpeg, "webp": _webp}
