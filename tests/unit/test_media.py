from __future__ import annotations

import io
import random
import resource
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.media import clips
from cosmos_triton.runtime.media.decode import decode
from cosmos_triton.runtime.media.encode import FPS, encode_mp4, parse_metadata
from cosmos_triton.runtime.media.headers import read_header
from cosmos_triton.runtime.media.limits import LIMITS, Limits
from cosmos_triton.runtime.media.picture_headers import MAX_JPEG_SCANS
from cosmos_triton.tiny import sample_media
from support import media_files as files

MAX_REFUSAL_SECONDS = 2.0
NEAR = 4  # of 255: what chroma of half the size and rounding cost
LAYOUTS = {"index last": None, "index first": "faststart", "fragments": "frag_keyframe+empty_moov"}


def assert_shows(frames: files.Pixels, numbers: Iterable[int]) -> None:
    """That these are the frames of `files.numbered` with these numbers."""
    expected = [files.grey(number) for number in numbers]
    assert frames.mean((1, 2, 3)) == pytest.approx(expected, abs=1)  # neighbours are 5 apart


def assert_near(actual: files.Pixels, expected: files.Pixels, *, within: float = NEAR) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected).max() <= within


def refusal(data: bytes, num_input_frames: int | None = None, *, limits: Limits = LIMITS) -> InvalidValue:
    started = time.monotonic()
    with pytest.raises(InvalidValue) as caught:
        decode(data, num_input_frames, limits=limits)
    assert time.monotonic() - started < MAX_REFUSAL_SECONDS
    return caught.value


@pytest.fixture(scope="module")
def ten_thousand() -> dict[str, bytes]:
    frames = np.broadcast_to(np.zeros((16, 16, 3), np.uint8), (10_000, 16, 16, 3))
    return {layout: files.clip(frames, codec="mpeg4", movflags=flags) for layout, flags in LAYOUTS.items()}


# What is refused, by what a user would call it: the file, and what the message must say of it.
CLIP = files.clip(files.numbered(12))
JPEG = files.still(files.quadrants(), "jpeg")
WEBP = files.still(files.quadrants(), "webp")
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "text": (b"this is not a video\n" * 100, "unknown format, starting with b'this is not "),
    "playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "unknown format"),
    "list of files": (b"ffconcat version 1.0\nfile /etc/passwd\n", "unknown format"),
    "gif": (b"GIF89a" + bytes(200), "gif format"),
    "random bytes": (random.Random(0).randbytes(100_000), "unknown format"),
    "random bytes after a png's signature": (b"\x89PNG\r\n\x1a\n" + random.Random(0).randbytes(10_000), "cut inside"),
    "random bytes after a jpeg's": (b"\xff\xd8\xff\xe0" + random.Random(0).randbytes(10_000), "jpeg"),
    "random bytes after a webp's": (b"RIFF\xff\x00\x00\x00WEBP" + random.Random(0).randbytes(10_000), "webp"),
    "random bytes after an mp4's": (b"\0\0\0\x10ftypisom\0\0\0\0" + random.Random(0).randbytes(10_000), "should end"),
    "png of 100 megapixels": (files.png_bomb(), "png of 10000x10000 pixels"),
    "jpeg of 100 megapixels": (
        JPEG.replace(struct.pack(">HH", files.HEIGHT, files.WIDTH), struct.pack(">HH", 10_000, 10_000), 1),
        "jpeg of 10000x10000 pixels",
    ),
    "webp of 100 megapixels": (
        WEBP[:21] + struct.pack("<I", 9_999 | 9_999 << 14) + WEBP[25:],
        "webp of 10000x10000 pixels",
    ),
    "mp4 of 100 megapixels": (
        files.patched(CLIP, b"stsd", 40, struct.pack(">HH", 10_000, 10_000)),
        "mp4 of 10000x10000 pixels",
    ),
    "mp4 of no frames": (files.patched(CLIP, b"stsz", 8, struct.pack(">I", 0)), "mp4 of 0 frames"),
    "mp4 without an index": (CLIP[: CLIP.index(b"moov") - 4], "none of them video"),
    "audio only": (files.audio_only(), "1 tracks, none of them video"),
    "photo in an mp4's container": (b"\0\0\0\x10ftypheic\0\0\0\0", "heic format (brand 'heic')"),
    "four thousand million frames": (files.patched(CLIP, b"stsz", 8, b"\xff" * 4), "mp4 of 4294967295 frames"),
    "four thousand million samples of audio": (
        files.patched(files.clip(files.numbered(3), audio=True), b"stsz", 8, b"\xff" * 4, last=True),
        "mp4 of 4294967295 audio and data samples",
    ),
    "a year long": (files.patched(CLIP, b"mvhd", 12, struct.pack(">II", 1, 365 * 86_400)), "mp4 of 31536000 seconds"),
    "a thousand edits": (files.patched(CLIP, b"elst", 4, struct.pack(">I", 1000)), "mp4 of 1000 edits"),
    "compressed index": (CLIP.replace(b"mvhd", b"cmov"), "compressed header"),
    "boxes without end": (CLIP[:32] + struct.pack(">I4s", 8, b"free") * 100_000, "more than 50000 boxes"),
    "tracks without end": (CLIP[:32] + struct.pack(">I4s", 8, b"trak") * 40_000, "more than 8 tracks"),
    "chunks without end": (
        b"\x89PNG\r\n\x1a\n" + files.png_chunk(b"IHDR", bytes(13)) + files.png_chunk(b"tEXt", b"") * 1_000_000,
        "png of more than 50000 chunks",
    ),
    "segments without end": (b"\xff\xd8" + b"\xff\xfe\x00\x02" * 1_000_000, "jpeg of more than 50000 segments"),
    "fill bytes without end": (b"\xff\xd8" + b"\xff" * 10_000_000, "jpeg of more than 50000 segments"),
    "boxes within boxes": (
        CLIP[:32] + b"".join(struct.pack(">I4s", 8 * n, b"moov") for n in range(1000, 0, -1)),
        "nested 9 deep",
    ),
    "jpeg of a thousand scans": (JPEG[:-2] + b"\xff\xda\x00\x02" * 1000 + JPEG[-2:], "jpeg of 1001 scans"),
    "half a png": (files.png_bomb()[:6000], "cut inside chunk b'IDAT'"),
    "jpeg without its last byte": (JPEG[:-1], "without an end"),
    "half a webp": (WEBP[: len(WEBP) // 2], f"announces {len(WEBP)}"),
    "half an mp4": (CLIP[: len(CLIP) // 2], "should end at byte"),
    "animated webp": (b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x02" + bytes(9), "animated webp"),
    "another codec": (files.clip(files.numbered(3), codec="mjpeg", pix_fmt="yuvj420p"), "another codec"),
    "frames that grow": (files.growing_clip(), "last 9 frames go from 64x48 to 128x96"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_at_once_and_told_why(name: str) -> None:
    data, reason = HOSTILE[name]
    error = refusal(data)
    assert error.field == "visual_input"
    assert reason in str(error.value)
    assert str(error) == f"visual_input: value {error.value}; accepted: {error.accepted}"
    assert error.accepted


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ten_thousand_frames_are_refused_by_the_header_alone(layout: str, ten_thousand: dict[str, bytes]) -> None:
    with pytest.raises(InvalidValue, match=r"an mp4 of 10000 frames; accepted: at most 1000 frames"):
        read_header(ten_thousand[layout], LIMITS)


def test_frames_that_the_header_hides_are_counted_while_decoding() -> None:
    data = files.with_hidden_table(files.clip(files.numbered(1100, 16, 16)), shown=5)
    assert [track.samples for track in read_header(data, LIMITS).tracks.values()] == [5]
    assert "more than 1000 frames" in str(refusal(data).value)


def test_pixels_that_the_header_hides_are_refused_by_the_codec() -> None:
    data = files.patched(CLIP, b"stsd", 40, struct.pack(">HH", 16, 16))
    limits = Limits(frame_pixels=1000)
    assert read_header(data, limits).width == 16
    assert "cannot be decoded" in str(refusal(data, limits=limits).value)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(file_bytes=1000), "bytes; accepted: at most 1000 bytes"),
        (Limits(frame_pixels=1000), "64x48 pixels; accepted: at most 1000 pixels"),
        (Limits(decoded_bytes=9 * 64 * 48 * 3 - 1), "9 frames of 64x48 pixels"),
        (Limits(frames=11), "12 frames; accepted: at most 11 frames"),
        (Limits(streams=1), "more than 1 tracks; accepted: at most 1 tracks"),
        (Limits(clip_seconds=0.4), "0.48 seconds; accepted: at most 0.4 seconds"),
        (Limits(cpu_seconds=0.0), "takes more than 0 seconds of CPU time to decode"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_limit_binds(limits: Limits, reason: str) -> None:
    data = files.clip(files.numbered(12), audio=True)
    assert decode(data).frames_in_file == 12
    assert reason in str(refusal(data, limits=limits))


def test_a_file_at_its_limits_is_decoded() -> None:
    data = files.clip(files.numbered(12), audio=True)
    limits = Limits(
        file_bytes=len(data),
        side_pixels=64,
        frame_pixels=64 * 48,
        picture_pixels=64 * 48,
        decoded_bytes=9 * 64 * 48 * 3,
        frames=12,
        streams=2,
        clip_seconds=0.48,
    )
    assert decode(data, limits=limits).frames_in_file == 12
    assert "12 frames; accepted: at most 11" in str(refusal(data, limits=replace(limits, frames=11)))
    for format in ("png", "jpeg", "webp"):
        picture = files.still(files.quadrants(), format)
        assert decode(picture, limits=limits).frames_in_file == 1
        for field, most in (("side_pixels", 63), ("picture_pixels", 64 * 48 - 1), ("file_bytes", len(picture) - 1)):
            assert f"at most {most} " in refusal(picture, limits=replace(limits, **{field: most})).accepted


def test_a_clip_may_play_five_minutes() -> None:
    for seconds in (300, 301):
        data = files.patched(CLIP, b"mvhd", 12, struct.pack(">II", 1, seconds))
        if seconds <= 300:
            assert decode(data).frames_in_file == 12
        else:
            assert "an mp4 of 301 seconds; accepted: at most 300 seconds" in str(refusal(data))


@pytest.mark.parametrize("count", [1, 9])
def test_frames_are_counted_where_the_header_hides_them(count: int) -> None:
    """Also those that need not be decoded, since a key frame comes after them."""
    clip = files.clip(files.numbered(12, 16, 16), options={"x264-params": "keyint=4:bframes=2"})
    data = files.with_hidden_table(clip, shown=5)
    assert decode(data, count, limits=Limits(frames=12)).frames_in_file == 12
    assert "more than 11 frames" in str(refusal(data, count, limits=Limits(frames=11)).value)


class Coded:
    """A packet of decoded frames."""

    def __init__(self, *frames: SimpleNamespace) -> None:
        self.frames = frames

    def decode(self) -> tuple[SimpleNamespace, ...]:
        return self.frames


def test_frames_are_counted_and_measured_as_they_come_out_of_the_codec() -> None:
    """A packet may have more frames than the list of samples says, and a later frame may be larger."""
    small, large = (SimpleNamespace(is_corrupt=False, width=width, height=16) for width in (16, 17))
    limits = Limits(frames=6, decoded_bytes=3 * 16 * 16 * 9)
    assert len(list(clips.decoded_frames([Coded(small, small)] * 3, 9, limits))) == 6
    with pytest.raises(InvalidValue, match="more than 6 frames"):
        list(clips.decoded_frames([Coded(small, small)] * 3 + [Coded(small)], 9, limits))
    with pytest.raises(InvalidValue, match="9 frames of 17x16 pixels"):
        list(clips.decoded_frames([Coded(small), Coded(), Coded(large)], 9, limits))


def test_no_other_codec_is_opened_not_even_for_a_track_that_is_not_read() -> None:
    data = files.clip(files.numbered(12), audio=True)
    with av.logging.Capture(local=True) as messages:
        av.logging.set_level(av.logging.ERROR)
        try:
            decode(data)
        finally:
            av.logging.set_level(None)
    assert any("aac" in text and "not on whitelist" in text for _, _, text in messages)


@pytest.mark.parametrize("order", [(3, 12), (12, 3)])
def test_the_frames_of_every_video_track_are_bounded(order: tuple[int, int]) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        tracks = [output.add_stream("mpeg4", rate=files.FPS) for _ in order]
        for track in tracks:
            track.width, track.height, track.pix_fmt = files.WIDTH, files.HEIGHT, "yuv420p"
        for track, count in zip(tracks, order, strict=True):
            for picture in files.numbered(count):
                output.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            output.mux(track.encode(None))
    data = file.getvalue()
    assert read_header(data, Limits(frames=12)).kind == "video"
    with pytest.raises(InvalidValue, match="an mp4 of 12 frames; accepted: at most 11 frames"):
        read_header(data, Limits(frames=11))


def test_frames_too_large_to_keep_are_refused_before_any_codec_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips.av, "open", None)
    assert "9 frames of 64x48 pixels" in str(refusal(CLIP, limits=Limits(decoded_bytes=1000)).value)


def test_a_hidden_table_of_a_hundred_million_frames_takes_neither_time_nor_memory() -> None:
    data = files.with_hidden_table(CLIP, shown=5)
    data = files.patched(data, b"stsz", 4, struct.pack(">II", 1, 100_000_000), last=True)
    data = files.patched(data, b"stsc", 12, struct.pack(">I", 100_000_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "no frame can be decoded" in str(refusal(data).value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_clip_cut_anywhere_is_refused(layout: str) -> None:
    data = files.clip(files.numbered(12), movflags=LAYOUTS[layout])
    assert decode(data).frames_in_file == 12
    needed = data.find(b"mfra") - 4 if layout == "fragments" else len(data)  # after it, an index that may be missing
    for size in [*range(0, needed, needed // 50), needed - 1]:
        refusal(data[:size])


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_an_image_cut_anywhere_is_refused(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    data = files.still(noise, format)
    assert decode(data).kind == "image"
    for size in [*range(0, len(data), len(data) // 50), len(data) - 1]:
        refusal(data[:size])


def test_a_webp_is_complete_to_the_last_byte() -> None:
    """Also where what is missing is padding, which no codec reads."""
    (size,) = struct.unpack_from("<I", WEBP, 16)  # of its only chunk
    assert 20 + size <= len(WEBP) <= 21 + size
    assert refusal(WEBP[:-1]).value == f"a webp of {len(WEBP) - 1} bytes that announces {len(WEBP)}"
    longer = WEBP[:16] + struct.pack("<I", len(WEBP) - 20 + 1) + WEBP[20:]
    assert refusal(longer).value == f"a webp of {len(WEBP)} bytes, cut inside chunk b'VP8L'"


def test_a_clip_with_a_damaged_frame_is_refused_where_the_frame_is_needed() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    data = files.clip(noise, codec="mpeg4")  # of key frames
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        holes = [packet.pos + packet.size // 2 for packet in packets]

    def damaged(number: int) -> bytes:
        return data[: holes[number]] + bytes(200) + data[holes[number] + 200 :]

    assert str(refusal(damaged(15)).value) == "an mp4 whose frame 16 is damaged"
    assert np.array_equal(decode(damaged(5)).frames, decode(data).frames)


def test_a_jpeg_with_a_hole_is_refused() -> None:
    data = files.still(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8), "jpeg")
    middle = len(data) // 2
    refusal(data[:middle] + data[middle + 2000 :])


@pytest.mark.parametrize("number", [0, -1, 2, 33])
def test_other_numbers_of_frames_are_refused(number: int) -> None:
    error = refusal(CLIP, number)
    assert (error.field, error.value, error.accepted) == ("num_input_frames", number, "1 or 9")


def test_a_clip_shorter_than_asked_for_names_both_numbers() -> None:
    short = files.clip(files.numbered(5))
    for number in (None, 9):
        error = refusal(short, number)
        assert error.field == "num_input_frames"
        assert error.value == "9 of a clip of 5 frames"
    assert_shows(decode(short, 1).frames, [4])


def test_an_image_is_one_frame_and_never_nine() -> None:
    assert len(decode(JPEG).frames) == len(decode(JPEG, 1).frames) == 1
    error = refusal(JPEG, 9)
    assert (error.field, error.value) == ("num_input_frames", "9 of an image")


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [
        ("libx264", "yuv420p"),
        ("libx264", "yuv444p"),
        ("libx265", "yuv420p10le"),
        ("mpeg4", "yuv420p"),
        ("libsvtav1", "yuv420p"),
    ],
)
def test_the_last_frames_of_a_clip_are_kept_in_order(codec: str, pix_fmt: str) -> None:
    data = files.clip(files.numbered(30), codec=codec, pix_fmt=pix_fmt)
    decoded = decode(data)
    assert_shows(decoded.frames, range(21, 30))
    assert_shows(decode(data, 1).frames, [29])
    assert (decoded.kind, decoded.frames_in_file, decoded.fps) == ("video", 30, files.FPS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_a_clip_is_read_in_every_layout_of_its_container(container: str, layout: str) -> None:
    data = files.clip(files.numbered(12), container=container, movflags=LAYOUTS[layout], audio=True)
    assert_shows(decode(data).frames, range(3, 12))


def test_decoding_holds_no_more_frames_than_it_returns() -> None:
    alive = [0]
    most = 0

    class Frame:
        width, height, is_corrupt = 64, 48, False

        def __init__(self) -> None:
            alive[0] += 1

        def __del__(self) -> None:
            alive[0] -= 1

    class Packet:
        def decode(self) -> Iterator[Frame]:
            yield Frame()

    def packets() -> Iterator[Packet]:
        nonlocal most
        for _ in range(500):
            yield Packet()
            most = max(most, alive[0])

    seen, kept = clips.last_frames(clips.decoded_frames(packets(), 9, Limits()), 9)
    assert (seen, len(kept)) == (500, 9)
    assert most <= 10


def test_a_png_is_decoded_exactly() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    decoded = decode(files.still(noise, "png"))
    assert np.array_equal(decoded.frames, noise[None])
    assert (decoded.kind, decoded.frames_in_file, decoded.fps) == ("image", 1, 0.0)


def test_a_webp_is_decoded_exactly() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    assert np.array_equal(decode(files.still(noise, "webp")).frames, noise[None])


def test_a_jpeg_is_decoded_in_its_colours() -> None:
    assert_near(files.corners(decode(JPEG).frames[0]), files.COLOURS)


def test_transparency_is_dropped_and_its_colour_stays() -> None:
    data = files.png(2, 1, b"\0" + bytes([10, 20, 30, 0, 40, 50, 60, 255]))
    assert decode(data).frames.tolist() == [[[[10, 20, 30], [40, 50, 60]]]]


def test_the_codec_sees_no_more_of_an_image_than_its_pixels() -> None:
    text = files.png_chunk(b"zTXt", b"comment\0\0" + b"bomb") + files.png_chunk(b"iCCP", b"profile\0\0" + b"bomb")
    png = files.png(2, 1, bytes(9), extra=text)
    assert b"bomb" in png
    assert b"bomb" not in read_header(png, LIMITS).coded
    jpeg = JPEG[:2] + b"\xff\xe2\x00\x06bomb" + b"\xff\xfe\x00\x06bomb" + JPEG[2:]
    assert b"bomb" not in read_header(jpeg, LIMITS).coded
    assert np.array_equal(decode(jpeg).frames, decode(JPEG).frames)


def test_scans_are_counted_up_to_the_limit() -> None:
    data = JPEG[:-2] + b"\xff\xda\x00\x02" * (MAX_JPEG_SCANS - 1) + JPEG[-2:]
    assert read_header(data, LIMITS).format == "jpeg"


@pytest.mark.parametrize(("rotation", "quarter_turns"), [(0, 0), (90, 1), (180, 2), (270, 3), (45, 0)])
def test_a_clip_is_turned_upright(rotation: int, quarter_turns: int) -> None:
    data = files.clip(np.stack([files.quadrants()] * 9), rotation=rotation)
    shown = decode(data).frames[-1]
    assert shown.shape == np.rot90(files.quadrants(), quarter_turns).shape
    assert_near(files.corners(shown), np.rot90(files.COLOURS, quarter_turns))


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda x: x),
        (2, np.fliplr),
        (3, lambda x: np.rot90(x, 2)),
        (4, np.flipud),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
        (8, np.rot90),
        (9, lambda x: x),
    ],
)
def test_a_photo_is_turned_upright(orientation: int, turn: Callable[[files.Pixels], files.Pixels], order: str) -> None:
    shown = decode(files.with_metadata(JPEG, exif=files.exif(orientation, order=order))).frames[0]
    assert shown.shape == turn(files.quadrants()).shape
    assert_near(files.corners(shown), turn(files.COLOURS))


def test_a_damaged_orientation_does_not_make_a_photo_unreadable() -> None:
    data = files.with_metadata(JPEG, exif=files.exif(6))
    directory = data.index(b"II*\0") + 4
    assert len(decode(data[:directory] + b"\xff" * 4 + data[directory + 4 :]).frames) == 1


@pytest.mark.parametrize("colorspace", [1, 5, 6], ids=["bt709", "bt470bg", "smpte170m"])
def test_colours_follow_the_matrix_that_the_clip_names(colorspace: int) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", {"qp": "4"}
        stream.codec_context.colorspace = colorspace
        for _ in range(9):
            frame = av.VideoFrame.from_ndarray(files.quadrants(), format="rgb24")
            output.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=min(colorspace, 5))))
        output.mux(stream.encode(None))
    assert_near(files.corners(decode(file.getvalue()).frames[-1]), files.COLOURS)


@pytest.fixture(scope="module")
def drive() -> files.Pixels:
    """33 frames [T, H, W, 3] with something to see in them."""
    frames = np.stack([sample_media.draw(i / FPS, sample_media.EVENING)[::4, ::4] for i in range(4)])
    return frames[np.arange(33) % len(frames)]


METADATA = {"title": "generated", "cosmos_model": "4b", "cosmos_seed": "7", "comment": "made by a model — not filmed"}


@pytest.fixture(scope="module")
def encoded(drive: files.Pixels) -> bytes:
    return encode_mp4(drive, metadata=METADATA)


def test_an_encoded_video_plays_33_frames_at_25_a_second(encoded: bytes) -> None:
    with av.open(io.BytesIO(encoded)) as container:
        (stream,) = container.streams
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.frames, stream.average_rate) == ("h264", "yuv420p", 33, 25)
        assert container.duration == 1_320_000  # microseconds
        assert [frame.time for frame in container.decode(stream)] == pytest.approx([i / 25 for i in range(33)])
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert tags == (1, 1, 1, 1)  # BT.709, limited range


def test_an_encoded_video_has_its_index_in_front(encoded: bytes) -> None:
    assert encoded.index(b"moov") < encoded.index(b"mdat")


def test_an_encoded_video_keeps_every_key_of_its_metadata(encoded: bytes) -> None:
    with av.open(io.BytesIO(encoded)) as container:
        assert METADATA.items() <= container.metadata.items()


def test_the_same_frames_give_the_same_bytes(drive: files.Pixels, encoded: bytes) -> None:
    assert encode_mp4(drive, metadata=METADATA) == encoded


def test_what_is_encoded_is_decoded(drive: files.Pixels, encoded: bytes) -> None:
    decoded = decode(encoded)
    assert (decoded.frames_in_file, decoded.fps) == (33, 25)
    error = np.subtract(decoded.frames, drive[-9:], dtype=np.float64)
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 35  # dB
    assert np.abs(error.mean((0, 1, 2))).max() < 1


def test_colours_come_back_as_they_were_encoded() -> None:
    video = np.stack([files.quadrants()] * 9)
    assert_near(files.corners(decode(encode_mp4(video, metadata={})).frames[-1]), files.COLOURS)


@pytest.mark.parametrize(
    "video",
    [
        np.zeros((3, 48, 64, 3), np.float32),
        np.zeros((48, 64, 3), np.uint8),
        np.zeros((3, 48, 64, 4), np.uint8),
        np.zeros((0, 48, 64, 3), np.uint8),
        np.zeros((3, 47, 64, 3), np.uint8),
        np.zeros((3, 48, 63, 3), np.uint8),
        np.zeros((1, 2, 4098, 3), np.uint8),
        np.zeros((1, 60_000, 2, 3), np.uint8),
    ],
    ids=lambda video: f"{video.dtype}{list(video.shape)}",
)
def test_frames_that_cannot_be_encoded_are_refused(video: files.Pixels) -> None:
    with pytest.raises(InvalidValue, match=r"^video: value .*; accepted: "):
        encode_mp4(video, metadata={})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b"7",
        b'{"seed": 7}',
        b'{"a": {"b": "c"}}',
        b"[" * 50_000,
        b'{"a": "\\ud800"}',
        b" " * 70_000,
    ],
)
def test_metadata_other_than_strings_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidValue, match=r"^metadata: value .*; accepted: a JSON object of strings"):
        parse_metadata(text)


def test_metadata_is_a_flat_object_of_strings() -> None:
    assert parse_metadata(b'{"seed": "7"}') == {"seed": "7"}


def test_the_samples_are_a_moving_clip_and_a_photo_of_the_served_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_media, "CLIP_FRAMES", 9)
    clip, still = sample_media.write_samples(tmp_path / "samples")
    moving, photo = decode(clip.read_bytes()), decode(still.read_bytes())
    assert moving.frames.shape == (9, 640, 1024, 3)
    assert photo.frames.shape == (1, 640, 1024, 3)
    assert np.abs(np.diff(moving.frames[:, 300:].astype(int), axis=0)).mean((1, 2, 3)).min() > 1
