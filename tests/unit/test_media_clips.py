"""The last frames of a clip: the same as if all of it were decoded, and no more work than they take."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest

from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.media import clips
from cosmos_triton.runtime.media.codecs import to_rgb
from cosmos_triton.runtime.media.decode import decode
from cosmos_triton.runtime.media.limits import Limits
from cosmos_triton.runtime.media.orientation import UPRIGHT
from support import media_files as files

COUNT = 40
MOVING = files.moving(COUNT)
QUIET = "log-level=none:"
H264 = {"x264-params": "keyint=12:bframes=3"}
# What matters for starting in the middle: how key frames are coded, and what may look behind them.
CODINGS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", H264),
    "h264, open groups": ("libx264", {"x264-params": "keyint=12:bframes=3:open-gop=1:b-pyramid=normal"}),
    "h264, gradual refresh": ("libx264", {"x264-params": "keyint=12:intra-refresh=1:bframes=0:scenecut=0"}),
    "h264, one group": ("libx264", {"x264-params": "keyint=infinite:scenecut=0"}),
    "h264, headers repeated": ("libx264", {"x264-params": "keyint=12:repeat-headers=1"}),
    "h264, interlaced": ("libx264", {"x264-params": "keyint=12:interlaced=1:tff=1"}),
    "hevc, open groups": ("libx265", {"x265-params": QUIET + "keyint=12:bframes=4:open-gop=1"}),
    "hevc, closed groups": ("libx265", {"x265-params": QUIET + "keyint=12:bframes=4:open-gop=0"}),
    "hevc, leading pictures": ("libx265", {"x265-params": QUIET + "keyint=12:bframes=4:open-gop=0:radl=2"}),
    "mpeg4": ("mpeg4", {"g": "12", "bf": "2"}),
    "av1": ("libsvtav1", {"svtav1-params": "keyint=12:preset=10"}),
}


def frames_of_the_whole(data: bytes) -> files.Pixels:
    """All frames, decoded from the first on: [T, H, W, 3]."""
    with av.open(io.BytesIO(data), format="mp4") as container:
        return to_rgb(list(container.decode(video=0)), UPRIGHT)


def assert_exact(data: bytes) -> None:
    whole = frames_of_the_whole(data)
    for count in (1, 9):
        decoded = decode(data, count)
        assert np.array_equal(decoded.frames, whole[-count:])
        assert decoded.frames_in_file == len(whole)


@pytest.fixture
def decoded_frames(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All frames that come out of a codec meanwhile."""
    frames: list[Any] = []

    def recorded(*arguments: Any) -> Iterator[Any]:
        for frame in original(*arguments):
            frames.append((frame.pts, frame.key_frame))
            yield frame

    original = clips.decoded_frames
    monkeypatch.setattr(clips, "decoded_frames", recorded)
    return frames


@pytest.mark.parametrize("coding", CODINGS)
def test_the_last_frames_are_exact(coding: str) -> None:
    codec, options = CODINGS[coding]
    assert_exact(files.clip(MOVING, codec=codec, options=options))


@pytest.mark.parametrize("movflags", ["faststart", "frag_keyframe+empty_moov", "frag_every_frame+empty_moov"])
def test_the_last_frames_are_exact_in_every_layout(movflags: str) -> None:
    assert_exact(files.clip(MOVING, options=H264, movflags=movflags))


def test_the_last_frames_are_exact_at_a_changing_rate() -> None:
    times = np.cumsum(np.resize([12, 24, 60, 18], COUNT)).tolist()
    assert_exact(files.clip(MOVING, options=H264, times=times))


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize(
    "edits",
    [
        [(0, 40)],
        [(5, 40)],
        [(30, 40)],
        [(0, 33)],
        [(7, 30)],
        [(0, 12), (20, 40)],
        [(0, 40), (0, 40)],
        [(20, 40), (0, 12)],
    ],
)
def test_the_last_frames_are_exact_with_edits(codec: str, edits: list[tuple[int, int]]) -> None:
    options = H264 if codec == "libx264" else {"x265-params": QUIET + "keyint=12:bframes=4:open-gop=0"}
    data = files.clip(MOVING, codec=codec, options=options)
    old = files.box(data, b"elst")
    (first,) = struct.unpack_from(">i", old, 20)
    movie, track = (struct.unpack_from(">I", files.box(data, kind), 20)[0] // files.FPS for kind in (b"mvhd", b"mdhd"))
    entries = [struct.pack(">IiI", (end - start) * movie, first + start * track, 1 << 16) for start, end in edits]
    assert_exact(files.with_box(data, old, files.full_box(b"elst", entries)))


@pytest.mark.parametrize("coding", ["h264", "h264, open groups", "hevc, open groups", "mpeg4", "av1"])
@pytest.mark.parametrize("marked", [range(1, COUNT + 1), [1], [1, 15, 30, 33]], ids=["all", "first", "wrong"])
def test_the_last_frames_are_exact_whatever_is_marked_as_a_key_frame(coding: str, marked: list[int]) -> None:
    codec, options = CODINGS[coding]
    data = files.clip(MOVING, codec=codec, options=options)
    table = files.full_box(b"stss", [struct.pack(">I", number) for number in marked])
    assert_exact(files.with_box(data, files.box(data, b"stss"), table))


@pytest.mark.parametrize("coding", ["h264", "hevc, closed groups", "mpeg4"])
@pytest.mark.parametrize("table", [b"stss", b"ctts"])
def test_the_last_frames_are_exact_without_a_table(coding: str, table: bytes) -> None:
    codec, options = CODINGS[coding]
    assert_exact(files.clip(MOVING, codec=codec, options=options).replace(table, b"free"))


@pytest.mark.parametrize("coding", ["h264", "hevc, open groups", "mpeg4", "av1"])
def test_only_frames_from_the_last_useful_key_frame_on_are_decoded(coding: str, decoded_frames: list[Any]) -> None:
    codec, options = CODINGS[coding]
    decode(files.clip(MOVING, codec=codec, options=options), 9)
    assert 9 <= len(decoded_frames) <= 24
    assert any(is_key for _, is_key in decoded_frames)


def test_a_mutated_clip_gives_the_frames_of_the_whole_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the whole can be decoded, decoding less of it is never another picture."""
    data = files.clip(MOVING[:, :32, :32], options=H264)
    rng = np.random.default_rng(0)
    first_needed = clips.first_needed
    compared = 0
    for _ in range(200):
        mutated = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            mutated[at] = rng.integers(256)
        outcomes = []
        for choice in (first_needed, lambda samples, count: 0):
            monkeypatch.setattr(clips, "first_needed", choice)
            try:
                outcomes.append(decode(bytes(mutated), 1).frames)
            except InvalidValue:
                break
        if len(outcomes) == 2:
            compared += 1
            assert np.array_equal(*outcomes)
    assert compared > 10


def test_a_limit_is_no_matter_of_load(monkeypatch: pytest.MonkeyPatch) -> None:
    data = files.clip(MOVING, options=H264)
    for clock in ("monotonic", "perf_counter", "time"):
        monkeypatch.setattr(time, clock, iter(range(0, 10**9, 3600)).__next__)
    assert len(decode(data).frames) == 9  # though hours go by between any two looks at a clock
    monkeypatch.setattr(time, "thread_time", iter(range(0, 10**9, 40)).__next__)
    with pytest.raises(InvalidValue, match="more than 60 seconds of CPU time to decode"):
        decode(data)


def test_a_clip_of_two_sizes_is_taken_where_its_last_frames_have_one() -> None:
    data = files.growing_clip()  # 6 frames of each
    assert decode(data, 1).frames.shape == (1, 2 * files.HEIGHT, 2 * files.WIDTH, 3)
    with pytest.raises(InvalidValue, match="last 9 frames go from 64x48 to 128x96"):
        decode(data, 9)


def test_large_frames_that_the_header_hides_are_not_kept() -> None:
    data = files.patched(files.clip(files.numbered(12, 256, 256)), b"stsd", 40, struct.pack(">HH", 16, 16))
    with pytest.raises(InvalidValue, match="9 frames of 256x256 pixels"):
        decode(data, limits=Limits(decoded_bytes=1_000_000))


@pytest.mark.parametrize("thumbnail", ["mjpeg", "libx264"])
def test_a_thumbnail_track_before_the_video_s_is_no_matter(thumbnail: str) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        small = output.add_stream(thumbnail, rate=files.FPS)
        video = output.add_stream("libx264", rate=files.FPS)
        for stream in (small, video):
            stream.width, stream.height, stream.pix_fmt = files.WIDTH, files.HEIGHT, "yuv420p"
        small.pix_fmt = "yuvj420p" if thumbnail == "mjpeg" else "yuv420p"
        video.options = {"qp": "4"}
        for stream, frames in ((small, files.numbered(1)), (video, files.numbered(12))):
            for picture in frames:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            output.mux(stream.encode(None))
    decoded = decode(file.getvalue())
    assert decoded.frames_in_file == 12
    assert decoded.frames.mean((1, 2, 3)) == pytest.approx([files.grey(number) for number in range(3, 12)], abs=1)


@pytest.mark.parametrize("movflags", [None, "faststart", "frag_keyframe+empty_moov"])
@pytest.mark.parametrize(
    "junk",
    [
        b"\xff" * 1000,
        b"\0" * 1000,
        b"\0\0\0\1" + b"x" * 8,
        b"\0\0\0\1" + b"x" * 100,
        b"\x7f\xff\xff\xffSEFT",
        b"<html>not found</html>",
        np.random.default_rng(0).bytes(5000),
        b"\0\0\0\x0cabcd1234" * 20 + b"\xff" * 30,
    ],
    ids=range(8),
)
def test_junk_behind_the_last_box_is_no_matter(junk: bytes, movflags: str | None) -> None:
    data = files.clip(MOVING[:12], movflags=movflags)
    assert np.array_equal(decode(data + junk).frames, decode(data).frames)
