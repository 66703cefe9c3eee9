"""Reads the headers of png, jpeg and webp without a codec: size, orientation, and what of the file the codec needs.

Why not Pillow: `Image.open` reads any number of chunks or segments before its size can be checked. A file of 64 MiB
that consists of empty ones keeps it busy for 20 to 40 s. It also does not notice a truncated file, or count the scans
of a progressive jpeg, and its result cannot be used to strip metadata from what the codec gets to see.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from cosmos_triton.runtime.media.formats import CONVERT_IMAGE
from cosmos_triton.runtime.media.limits import incomplete, refused
from cosmos_triton.runtime.media.orientation import Matrix, of_metadata

MAX_PARTS = 50_000  # chunks of a png or webp, or segments of a jpeg, which may be as short as 4 bytes
# Each scan of a progressive jpeg costs a pass over the whole picture and may be a few bytes long. Encoders write 10.
MAX_JPEG_SCANS = 100
MAX_METADATA = 1 << 20  # bytes in which an orientation is looked for

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The chunks that the codec gets. Text, profiles and animation can be decompression bombs too; tRNS is transparency.
# Without animation, the codec sees the still picture for viewers that do not animate.
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_PNG_XMP = b"XML:com.adobe.xmp\0"

# Markers of a jpeg: start of scan, start of frame (all codings), and metadata: EXIF, profiles, previews, comments.
# The application segments JFIF (0xE0) and Adobe (0xEE) say how to decode and are kept.
_SCAN = 0xDA
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_APP1 = 0xE1
_METADATA = frozenset((*range(0xE1, 0xEE), 0xEF, 0xFE))
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"

_VP8X_ANIMATED = 0x02
_WEBP_PICTURE = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH")


@dataclass(frozen=True, slots=True)
class Picture:
    """Size in pixels as the file claims it, the display matrix, and the file without what the codec does not need."""

    width: int
    height: int
    coded: bytes = field(repr=False)
    matrix: Matrix


def read_png(data: bytes) -> Picture:
    kept, exif, xmp = [_PNG_SIGNATURE], b"", b""
    for number, (kind, start, end) in enumerate(_png_chunks(data)):
        content, size = start + 8, end - start - 12
        if (number == 0) != (kind == b"IHDR"):
            raise incomplete("a png without a header, or with several")
        if kind in _PNG_CHUNKS:
            kept.append(data[start:end])
        elif kind == b"eXIf" and not exif and size <= MAX_METADATA:
            exif = data[content : content + size]
        elif kind == b"iTXt" and not xmp and size <= MAX_METADATA and data.startswith(_PNG_XMP, content):
            xmp = data[content : content + size]
    width, height = struct.unpack_from(">II", data, len(_PNG_SIGNATURE) + 8)
    return Picture(width, height, b"".join(kept), of_metadata(exif, xmp))


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


def read_jpeg(data: bytes) -> Picture:
    kept, width, height, exif, xmp = [data[:2]], 0, 0, b"", b""
    scan = 0
    for marker, start, scan in _jpeg_segments(data):
        segment = data[start:scan]
        if marker in _FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", segment, 5)
        elif marker == _APP1 and segment.startswith(b"Exif\0\0", 4):
            exif = exif or segment[4:]
        elif marker == _APP1 and segment.startswith(_JPEG_XMP, 4):
            xmp = xmp or segment[4:]
        if marker not in _METADATA:
            kept.append(segment)
    end = data.find(b"\xff\xd9", scan)  # neither this nor another marker occurs inside coded data
    if not width or end < 0:
        raise incomplete(f"a jpeg of {len(data)} bytes without {'an end' if width else 'a size'}")
    scans = 1 + data.count(b"\xff\xda", scan, end)
    if scans > MAX_JPEG_SCANS:
        raise refused(f"a jpeg of {scans} scans", f"at most {MAX_JPEG_SCANS} scans")
    return Picture(width, height, b"".join(kept) + data[scan : end + 2], of_metadata(exif, xmp))


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


def read_webp(data: bytes) -> Picture:
    (riff_size,) = struct.unpack_from("<I", data, 4)
    end = riff_size + 8
    if end > len(data):
        raise incomplete(f"a webp of {len(data)} bytes that announces {end}")
    width, height = _webp_size(data)
    kept, metadata = [], {b"EXIF": b"", b"XMP ": b""}
    for kind, start, stop in _webp_chunks(data, end):
        if kind in _WEBP_PICTURE:
            kept.append(data[start:stop])
        elif kind in metadata and stop - start <= MAX_METADATA:
            metadata[kind] = metadata[kind] or data[start + 8 : stop]
    body = b"WEBP" + b"".join(kept)
    coded = b"RIFF" + struct.pack("<I", len(body)) + body
    return Picture(width, height, coded, of_metadata(metadata[b"EXIF"], metadata[b"XMP "]))


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height, of the canvas if there is one."""
    kind, body = data[12:16], 20
    if kind == b"VP8 ":  # a frame tag of 3 bytes, a start code of 3, then two sizes of 14 bits
        width, height = (field & 0x3FFF for field in struct.unpack_from("<HH", data, body + 6))
    elif kind == b"VP8L":  # a signature byte, then two sizes of 14 bits, each less one
        (sizes,) = struct.unpack_from("<I", data, body + 1)
        width, height = (sizes & 0x3FFF) + 1, (sizes >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":  # flags, 3 reserved bytes, then two sizes of 24 bits, each less one
        if data[body] & _VP8X_ANIMATED:
            raise refused("an animated webp", CONVERT_IMAGE)
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, body + 4)
        width, height = (high_width << 16 | low_width) + 1, (high_height << 16 | low_height) + 1
    else:
        raise incomplete(f"a webp that starts with chunk {kind!r}")
    return width, height


def _webp_chunks(data: bytes, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk; the end is even, which may take a byte of padding."""
    start = 12
    for _ in range(MAX_PARTS):
        if start + 8 > end:
            return
        kind, length = struct.unpack_from("<4sI", data, start)
        stop = start + 8 + length
        if stop > end:
            raise incomplete(f"a webp of {len(data)} bytes, cut inside chunk {kind!r}")
        yield kind, start, stop + length % 2
        start = stop + length % 2
    raise refused(f"a webp of more than {MAX_PARTS} chunks", f"at most {MAX_PARTS} chunks")
