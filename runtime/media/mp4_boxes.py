"""Reads the boxes of an mp4 file (ISO/IEC 14496-12) for the numbers that bound a demuxer's work.

A few bytes of header can announce millions of samples, and a demuxer allocates memory for each before the first frame
is decoded. FFmpeg has no limit on that, so the numbers are checked here first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from cosmos_triton.runtime.media.limits import Limits, incomplete, refused
from cosmos_triton.runtime.media.orientation import UPRIGHT, Matrix, product

# Each bounds a table that a demuxer builds, far above what cameras and encoders write for a clip.
MAX_BOXES = 50_000
MAX_DEPTH = 8
MAX_EDITS = 16  # an edit may repeat the whole clip
MAX_OTHER_SAMPLES = 1 << 22  # of all tracks that are not video

_LONGEST_READ = 96  # bytes of a box; a track header of 64-bit times is the longest
_FIXED_POINT_ONE = 1 << 16
_UNKNOWN_DURATION = ((1 << 32) - 1, (1 << 64) - 1)  # by version of the box
# What a file consists of. Anything else after the index is junk: some programs and phones append data of their own.
_FILE_BOXES = frozenset(b"ftyp moov mdat moof mfra free skip wide uuid meta udta sidx styp".split())
_CONTAINERS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf"))


@dataclass(slots=True)
class Track:
    """What one track claims. Width and height are 0 unless it is video."""

    handler: bytes = b""
    number: int = 0
    coding: bytes = b""  # of a video track, such as "avc1"
    width: int = 0
    height: int = 0
    samples: int = 0  # of a video track: frames
    edits: int = 0
    matrix: Matrix = UPRIGHT


@dataclass(slots=True)
class Movie:
    """What a file claims; it ends at byte `end`, and what follows is no part of it."""

    end: int = 0
    tracks: list[Track] = field(default_factory=list)
    seconds: float = 0.0
    matrix: Matrix = UPRIGHT
    fragment_of: Track | None = None  # the track that the current fragment continues

    @property
    def videos(self) -> list[Track]:
        return [track for track in self.tracks if track.handler == b"vide"]


def read_mp4(data: bytes, limits: Limits) -> Movie:
    """The tracks of a file.

    Raises:
        InvalidValue: the file is truncated, has no video frames, or announces more than `limits` allow.
        struct.error, IndexError: a box is too short.
    """
    movie = Movie()
    for count, (kind, start, end) in enumerate(_walk(data, 0, len(data))):
        if count > MAX_BOXES:
            raise refused(f"an mp4 of more than {MAX_BOXES} boxes", f"at most {MAX_BOXES} boxes")
        _read_box(movie, kind, data[start : min(end, start + _LONGEST_READ)])
        if kind in _FILE_BOXES:
            movie.end = max(movie.end, end)
        if len(movie.tracks) > limits.streams:
            raise refused(f"an mp4 of more than {limits.streams} tracks", f"at most {limits.streams} tracks")

    videos = movie.videos
    others = sum(track.samples for track in movie.tracks if track.handler != b"vide")
    if not videos:
        brand = data[8:12].decode("latin-1")
        raise refused(f"an mp4 (brand {brand!r}) of {len(movie.tracks)} tracks, none of them video", "a video track")
    longest = max(track.samples for track in videos)
    for what, claimed, limit in (
        ("frames", longest, limits.frames),
        ("seconds", movie.seconds, limits.clip_seconds),
        ("edits", max(track.edits for track in movie.tracks), MAX_EDITS),
        ("audio and data samples", others, MAX_OTHER_SAMPLES),
    ):
        if claimed > limit:
            raise refused(f"an mp4 of {claimed:.10g} {what}", f"at most {limit:.10g} {what}")
    if longest == 0:
        raise refused("an mp4 of 0 frames", f"1 to {limits.frames} frames")
    for track in videos:
        track.matrix = product(track.matrix, movie.matrix)
    return movie


def _walk(data: bytes, start: int, end: int, *, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start of the content, and end of every box, in depth-first order. It stops at junk after the index."""
    if depth > MAX_DEPTH:
        raise refused(f"an mp4 of boxes nested {depth} deep", f"at most {MAX_DEPTH} deep")
    has_index = False
    while start + 8 <= end:
        kind = data[start + 4 : start + 8]
        content, stop = _extent(data, start, end)
        if not content <= stop <= end:
            if depth == 0 and has_index and kind not in _FILE_BOXES:
                return
            raise incomplete(f"an mp4 of {len(data)} bytes whose box {kind!r} should end at byte {stop}")
        has_index |= kind == b"moov"
        yield kind, content, stop
        if kind in _CONTAINERS:
            yield from _walk(data, content, stop, depth=depth + 1)
        start = stop


def _extent(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the content of the box at `start` begins and ends."""
    (size,) = struct.unpack_from(">I", data, start)
    if size == 0:  # the rest of the file
        return start + 8, end
    if size == 1 and start + 16 <= end:  # too long for 32 bits
        return start + 16, start + struct.unpack_from(">Q", data, start + 8)[0]
    return start + 8, start + size


def _read_box(movie: Movie, kind: bytes, body: bytes) -> None:
    """Add what a box announces to `movie`; `body` is the beginning of its content."""
    if kind == b"trak":
        movie.tracks.append(Track())
        return
    if kind == b"cmov":
        raise refused("an mp4 with a compressed header", "an mp4 with a plain header")
    if kind == b"mvhd":
        timescale, duration = struct.unpack_from(">IQ" if body[0] else ">II", body, 20 if body[0] else 12)
        unknown = _UNKNOWN_DURATION[body[0] > 0]
        movie.seconds = 0.0 if duration == unknown else duration / max(1, timescale)
        movie.matrix = _matrix(body, 48 if body[0] else 36)
    elif kind == b"tfhd":
        (number,) = struct.unpack_from(">I", body, 4)
        movie.fragment_of = next((track for track in movie.tracks if track.number == number), None)
    elif kind == b"trun":
        if movie.fragment_of is not None:
            movie.fragment_of.samples += struct.unpack_from(">I", body, 4)[0]
    elif movie.tracks:
        _read_track_box(movie.tracks[-1], kind, body)


def _read_track_box(track: Track, kind: bytes, body: bytes) -> None:
    if kind == b"tkhd":
        long = body[0] > 0  # times of 64 bits
        (track.number,) = struct.unpack_from(">I", body, 20 if long else 12)
        track.matrix = _matrix(body, 52 if long else 40)
    elif kind == b"hdlr" and not track.handler:  # QuickTime files have a second one, the data handler
        track.handler = body[8:12]
    elif kind == b"stsd" and track.handler == b"vide" and len(body) >= 44:
        track.coding = body[12:16]
        track.width, track.height = struct.unpack_from(">HH", body, 40)
    elif kind in (b"stsz", b"stz2"):
        track.samples += struct.unpack_from(">I", body, 8)[0]
    elif kind == b"elst":
        track.edits += struct.unpack_from(">I", body, 4)[0]


def _matrix(body: bytes, offset: int) -> Matrix:
    a, b, _, c, d = (number / _FIXED_POINT_ONE for number in struct.unpack_from(">5i", body, offset))
    return (a, b, c, d)
