"""Reads a file's header without a codec, to refuse decompression bombs and damaged files before anything is decoded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from cosmos_triton.runtime.generation_request import MediaKind
from cosmos_triton.runtime.media.formats import FILES, Format, recognise
from cosmos_triton.runtime.media.limits import MIB, Limits, incomplete, refused
from cosmos_triton.runtime.media.mp4_boxes import Track, read_mp4
from cosmos_triton.runtime.media.orientation import UPRIGHT, Matrix
from cosmos_triton.runtime.media.picture_headers import Picture, read_jpeg, read_png, read_webp


@dataclass(frozen=True, slots=True)
class Header:
    """Size as the file claims it, the largest of a clip's video tracks, and what of the file the codec needs.

    `matrix` is a picture's display matrix; `tracks` are a clip's video tracks by number, each with its own.
    """

    format: Format
    width: int
    height: int
    coded: bytes = field(repr=False)
    matrix: Matrix = UPRIGHT
    tracks: dict[int, Track] = field(default_factory=dict)

    @property
    def kind(self) -> MediaKind:
        return "video" if self.format == "mp4" else "image"


def read_header(data: bytes, limits: Limits) -> Header:
    """Recognise a file and check what it claims against `limits`.

    Raises:
        InvalidValue: the format is unknown or not accepted, or the file is damaged, truncated, or over a limit.
    """
    if not data:
        raise refused("0 bytes", FILES)
    if len(data) > limits.file_bytes:
        raise refused(f"{len(data)} bytes", f"at most {limits.file_bytes} bytes ({limits.file_bytes // MIB} MiB)")
    format = recognise(data)
    try:
        header = _mp4(data, limits) if format == "mp4" else _picture(format, data)
    except (struct.error, IndexError):
        raise incomplete(f"{format} data whose header is cut or damaged") from None
    _check_size(header, limits)
    return header


def _mp4(data: bytes, limits: Limits) -> Header:
    movie = read_mp4(data, limits)
    largest = max(movie.videos, key=lambda track: track.width * track.height)
    tracks = {track.number: track for track in movie.videos}
    return Header("mp4", largest.width, largest.height, data[: movie.end], tracks=tracks)


def _picture(format: Format, data: bytes) -> Header:
    picture = _PICTURE_READERS[format](data)
    return Header(format, picture.width, picture.height, picture.coded, picture.matrix)


_PICTURE_READERS: dict[Format, Callable[[bytes], Picture]] = {"png": read_png, "jpeg": read_jpeg, "webp": read_webp}


def _check_size(header: Header, limits: Limits) -> None:
    size = f"{header.format} of {header.width}x{header.height} pixels"
    most, what = (limits.picture_pixels, "picture") if header.kind == "image" else (limits.frame_pixels, "frame")
    if header.width * header.height > most:
        raise refused(size, f"at most {most} pixels a {what}")
    if max(header.width, header.height) > limits.side_pixels:
        raise refused(size, f"at most {limits.side_pixels} pixels a side")
