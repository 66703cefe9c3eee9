"""Recognises a file by its first bytes, never by its name. What is not accepted is named, with how to convert it."""

from __future__ import annotations

from typing import Literal

from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.media.limits import refused

Format = Literal["png", "jpeg", "webp", "mp4"]

FILES = "a png, jpeg or webp image, or an mp4 clip"
CONVERT_CLIP = f"{FILES}; convert it: ffmpeg -i INPUT -c:v libx264 -pix_fmt yuv420p -an clip.mp4"
CONVERT_IMAGE = f"{FILES}; convert it: ffmpeg -i INPUT -frames:v 1 image.png"
CONVERT_PHOTO = f"{FILES}; export it as jpeg, or convert it: magick INPUT image.jpg"

# Name, offset and signature, and what to do with it. Longer signatures of the same start come first.
_OTHERS: tuple[tuple[str, int, bytes, str], ...] = (
    ("webm", 0, b"\x1aE\xdf\xa3", CONVERT_CLIP),
    ("gif", 0, b"GIF8", CONVERT_CLIP),
    ("avi", 8, b"AVI ", CONVERT_CLIP),
    ("flv", 0, b"FLV\1", CONVERT_CLIP),
    ("wmv or asf", 0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", CONVERT_CLIP),
    ("ogg", 0, b"OggS", CONVERT_CLIP),
    ("mpeg program stream", 0, b"\0\0\1\xba", CONVERT_CLIP),
    ("mpeg video stream", 0, b"\0\0\1\xb3", CONVERT_CLIP),
    ("raw h264 or hevc stream", 0, b"\0\0\0\1", CONVERT_CLIP),
    ("ivf", 0, b"DKIF", CONVERT_CLIP),
    ("yuv4mpeg", 0, b"YUV4MPEG2", CONVERT_CLIP),
    ("tiff or raw photo", 0, b"II*\0", CONVERT_PHOTO),
    ("tiff or raw photo", 0, b"MM\0*", CONVERT_PHOTO),
    ("jpeg xl", 0, b"\xff\x0a", CONVERT_PHOTO),
    ("jpeg xl", 4, b"JXL ", CONVERT_PHOTO),
    ("jpeg 2000", 4, b"jP  ", CONVERT_PHOTO),
    ("bmp", 0, b"BM", CONVERT_IMAGE),
    ("psd", 0, b"8BPS", CONVERT_PHOTO),
    ("ico", 0, b"\0\0\1\0", CONVERT_IMAGE),
    ("openexr", 0, b"\x76\x2f\x31\x01", CONVERT_IMAGE),
    ("radiance hdr", 0, b"#?RADIANCE", CONVERT_IMAGE),
    ("qoi", 0, b"qoif", CONVERT_IMAGE),
    ("pdf", 0, b"%PDF-", CONVERT_PHOTO),
    ("svg", 0, b"<svg", CONVERT_PHOTO),
)
_TS_PACKET = 188  # bytes, each starting with a sync byte
# Brands of pictures in the boxes of an mp4, and of sequences of them, which some programs also give to clips.
_PICTURE_BRANDS = {b"avif": "avif", b"mif1": "heif"} | dict.fromkeys((b"heic", b"heix", b"heim", b"heis"), "heic")
_SEQUENCE_BRANDS = {b"avis": "avif", b"msf1": "heif"} | dict.fromkeys((b"hevc", b"hevx", b"hevm", b"hevs"), "heic")
# The first box of a QuickTime file may be any of these.
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def recognise(data: bytes) -> Format:
    """Raises InvalidValue for what is none of the accepted formats."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] in _MP4_BOXES:
        _check_is_no_picture(data)
        return "mp4"
    raise _unaccepted(data)


def _check_is_no_picture(data: bytes) -> None:
    if data[4:8] != b"ftyp":
        return
    brand = data[8:12]
    name = _PICTURE_BRANDS.get(brand) or (_SEQUENCE_BRANDS.get(brand) if b"vide" not in data else None)
    if name:
        raise refused(f"a picture in {name} format (brand {brand.decode()!r})", CONVERT_PHOTO)


def _unaccepted(data: bytes) -> InvalidValue:
    for name, offset, signature, accepted in _OTHERS:
        if data.startswith(signature, offset):
            if name == "webm" and b"webm" not in data[:64]:
                name = "mkv"
            return refused(f"a file in {name} format", accepted)
    if data[:1] == b"G" and data[_TS_PACKET : _TS_PACKET + 1] == b"G":
        return refused("a file in mpeg transport stream format", CONVERT_CLIP)
    return refused(f"{len(data)} bytes of an unknown format, starting with {data[:12]!r}", FILES)
