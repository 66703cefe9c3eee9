"""Decodes the last frames of a clip, and of the others no more than those depend on.

The samples (coded frames) are listed first. Decoding starts at the last one from which all wanted frames follow. What
comes out is compared with the list; where it differs, the whole clip is decoded instead.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from typing import TypeVar

import av
from av.stream import Disposition

from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.media.clip_samples import Sample, first_needed, list_samples, times_after
from cosmos_triton.runtime.media.codecs import Decoded, codec_errors, to_rgb
from cosmos_triton.runtime.media.fit import SQUARE
from cosmos_triton.runtime.media.formats import CONVERT_CLIP
from cosmos_triton.runtime.media.headers import Header
from cosmos_triton.runtime.media.limits import MIB, Limits, incomplete, refused
from cosmos_triton.runtime.media.mp4_boxes import Track
from cosmos_triton.runtime.media.orientation import is_sideways

CODECS = ("h264", "hevc", "mpeg4", "libdav1d")

Packets = Iterable["av.Packet[av.VideoStream]"]
Frame = TypeVar("Frame")


def decode_clip(header: Header, count: int, limits: Limits) -> Decoded:
    """The last `count` frames.

    Raises:
        InvalidValue: the clip is damaged, too short, of another codec, or over a limit.
    """
    check_kept(header.width, header.height, count, limits)
    budget = _CpuBudget(limits.cpu_seconds)
    with codec_errors(header.format):
        with _opened(header, count, limits) as (container, stream):
            samples = list_samples(budget.spend_on(container.demux(stream)), stream.codec_context, limits)
            matrix = header.tracks.get(stream.id, Track()).matrix
            aspect = _pixel_aspect(stream.sample_aspect_ratio, is_turned=is_sideways(matrix))
            fps = float(stream.average_rate or 0)
        start = first_needed(samples, count)
        frames = _decode_from(start, samples, header, count, limits, budget) if start else None
        if frames is not None:
            seen = sum(sample.is_shown for sample in samples)
        else:
            with _opened(header, count, limits) as (container, stream):
                packets = budget.spend_on(container.demux(stream))
                seen, frames = last_frames(decoded_frames(packets, count, limits), count)
        _check_is_one_size(frames)
        pixels = to_rgb(frames, matrix)
        return Decoded(pixels, "video", (pixels.shape[1], pixels.shape[2]), seen, fps, aspect)


def _decode_from(
    start: int, samples: list[Sample], header: Header, count: int, limits: Limits, budget: _CpuBudget
) -> list[av.VideoFrame] | None:
    """The last `count` frames, decoded from sample `start` on; None if anything is not as the samples say."""
    entry = samples[start].time
    times: list[int] = []
    kept: deque[av.VideoFrame] = deque(maxlen=count)
    has_entry = False
    try:
        with _opened(header, count, limits) as (container, stream):
            packets = islice(budget.spend_on(container.demux(stream)), start, None)
            for frame in decoded_frames(packets, count, limits):
                if frame.pts >= entry:  # what is shown before may depend on earlier samples
                    times.append(frame.pts)
                    kept.append(frame)
                    has_entry |= frame.pts == entry and frame.key_frame
    except (av.FFmpegError, InvalidValue, TypeError):  # TypeError: a frame without a time
        return None
    return list(kept) if has_entry and times == times_after(samples, start) else None


def last_frames(frames: Iterable[Frame], count: int) -> tuple[int, list[Frame]]:
    """The number of frames in a clip, and the last `count` of them. No more than those are kept in memory.

    Raises:
        InvalidValue: the clip has fewer.
    """
    kept: deque[Frame] = deque(maxlen=count)
    seen = 0
    for frame in frames:
        seen += 1
        kept.append(frame)
    if seen < count:
        few = f"{count} of a clip of {seen} frames"
        raise InvalidValue("num_input_frames", few, "1 or 9, and no more than the clip has")
    return seen, list(kept)


def decoded_frames(packets: Packets, count: int, limits: Limits) -> Iterator[av.VideoFrame]:
    """All frames of some packets, checked against the limits again: the header may have lied.

    Args:
        count: how many frames will be kept.
    """
    seen = 0
    for packet in packets:
        for frame in packet.decode():
            seen += 1
            if frame.is_corrupt:
                raise incomplete(f"an mp4 whose frame {seen} is damaged")
            check_kept(frame.width, frame.height, count, limits)
            yield frame
        if seen > limits.frames:
            raise refused(f"a clip of more than {limits.frames} frames", f"1 to {limits.frames} frames")
    if not seen:
        raise incomplete("an mp4 of which no frame can be decoded")


def check_kept(width: int, height: int, count: int, limits: Limits) -> None:
    """Raises InvalidValue if `count` frames take too much memory."""
    size = 3 * width * height * count
    if size > limits.decoded_bytes:
        raise refused(
            f"{count} frames of {width}x{height} pixels, {size / MIB:.0f} MiB when decoded",
            f"at most {limits.decoded_bytes // MIB} MiB",
        )


def _check_is_one_size(frames: list[av.VideoFrame]) -> None:
    sizes = list(dict.fromkeys(f"{frame.width}x{frame.height}" for frame in frames))
    if len(sizes) > 1:
        raise refused(f"a clip whose last {len(frames)} frames go from {' to '.join(sizes)}", "frames of one size")


@contextmanager
def _opened(header: Header, count: int, limits: Limits) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The file and its video: of the tracks that have enough frames, the one of most pixels, then of most frames."""
    # One thread a clip: several clips may be decoded at the same time, and a thread's CPU time is the clip's.
    options = {"max_pixels": str(limits.frame_pixels), "codec_whitelist": ",".join(CODECS), "threads": "1"}

    def rank(stream: av.VideoStream) -> tuple[int, int, int]:
        samples = header.tracks.get(stream.id, Track()).samples
        return min(samples, count), stream.width * stream.height, samples

    with av.open(io.BytesIO(header.coded), format="mp4", options=options, metadata_errors="replace") as container:
        streams = [stream for stream in container.streams.video if _is_video(stream)]
        if not streams:
            codings = ", ".join(track.coding.decode("latin-1") for track in header.tracks.values())
            raise refused(f"an mp4 whose video is of another codec ({codings!r})", CONVERT_CLIP)
        stream = max(streams, key=rank)
        stream.codec_context.options = options
        yield container, stream


def _is_video(stream: av.VideoStream) -> bool:
    """Whether a track is of an accepted codec, and neither a cover nor thumbnails of chapters."""
    codec = stream.codec_context
    return codec is not None and codec.codec.name in CODECS and Disposition.attached_pic not in stream.disposition


def _pixel_aspect(aspect: Fraction | None, *, is_turned: bool) -> Fraction:
    """Of the upright frames. None or 0 is unknown."""
    if aspect is None or aspect <= 0:
        return SQUARE
    return 1 / aspect if is_turned else aspect


class _CpuBudget:
    """CPU time of the calling thread from now on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.thread_time() + seconds

    def spend_on(self, packets: Packets) -> Packets:
        """The packets, as long as there is time left.

        Raises:
            InvalidValue: there is none.
        """
        for packet in packets:
            if time.thread_time() > self._end:
                seconds = f"{self._seconds:.10g} seconds of CPU time"
                raise refused(f"a clip that takes more than {seconds} to decode", "fewer, smaller or simpler frames")
            yield packet
