"""The samples (coded frames) of a clip, and at which of them decoding may start.

Decoding from a sample gives the same frames as decoding from the beginning if it is a key frame that later frames do
not look behind. HEVC's random access points, AV1's key frames and MPEG-4's I-VOPs promise that for what is shown after
them. In H.264 only an IDR picture does; files also mark others, such as recovery points of a gradual refresh. Headers
inside the stream must not come from an earlier sample either.

Sources: ITU-T H.264 7.4.1.2.4, H.265 3.111 and 7.4.2.2, and ISO/IEC 14496-15 for the samples' layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import av

from cosmos_triton.runtime.media.limits import Limits, refused

MAX_NAL_UNITS = 256  # of a sample, that are looked at


@dataclass(frozen=True, slots=True)
class Sample:
    """When it is shown, in the track's unit; whether it is (an edit list can hide it); if decoding may start here."""

    time: int | None
    is_shown: bool
    is_entry: bool


@dataclass(frozen=True, slots=True)
class _NalUnits:
    """How the samples of a codec are divided: by lengths of `length_size` bytes, each unit's type in its first byte."""

    length_size: int
    shift: int
    mask: int
    entries: frozenset[int]
    headers: frozenset[int]  # parameter sets, all of which an entry must repeat if any sample has one

    def types(self, sample: memoryview) -> set[int]:
        found: set[int] = set()
        start = 0
        for _ in range(MAX_NAL_UNITS):
            body = start + self.length_size
            if body >= len(sample):
                break
            found.add(sample[body] >> self.shift & self.mask)
            start = body + int.from_bytes(sample[start:body], "big")
        return found


def list_samples(
    packets: Iterable[av.Packet[av.VideoStream]], codec: av.VideoCodecContext, limits: Limits
) -> list[Sample]:
    """The samples of a track in the order in which they are decoded.

    Raises:
        InvalidValue: there are more than a clip may have; the header may have lied.
    """
    nal_units = _nal_units(codec)
    samples: list[Sample] = []
    has_headers = False  # since the first sample
    for packet in packets:
        is_entry = packet.is_keyframe and not packet.is_discard
        if packet.has_sidedata("new_extradata"):
            has_headers, is_entry = True, False
        elif nal_units is not None:
            types = nal_units.types(memoryview(packet))
            has_headers |= not types.isdisjoint(nal_units.headers)
            is_entry &= not types.isdisjoint(nal_units.entries)
            is_entry &= not has_headers or nal_units.headers <= types
        else:
            is_entry &= codec.name in _ENTRIES_BY_FLAG and not has_headers
        is_shown = packet.size > 0 and not packet.is_discard  # the last packet is empty: it flushes the codec
        samples.append(Sample(packet.pts, is_shown, is_entry))
        if len(samples) > limits.frames + 1:
            raise refused(f"a clip of more than {limits.frames} frames", f"1 to {limits.frames} frames")
    return samples


_ENTRIES_BY_FLAG = ("mpeg4", "libdav1d")


def _nal_units(codec: av.VideoCodecContext) -> _NalUnits | None:
    """For h264 and hevc, by the decoder configuration record; None for other codecs and without a record."""
    record = codec.extradata or b""
    if codec.name == "h264" and len(record) > 6 and record[0] == 1:
        return _NalUnits((record[4] & 3) + 1, 0, 0x1F, frozenset((5,)), frozenset((7, 8)))
    if codec.name == "hevc" and len(record) > 22 and record[0] == 1:
        return _NalUnits((record[21] & 3) + 1, 1, 0x3F, frozenset(range(16, 22)), frozenset((32, 33, 34)))
    return None


def first_needed(samples: list[Sample], count: int) -> int:
    """The last sample from which decoding gives the last `count` frames; 0 if that is not certain."""
    times = [sample.time for sample in samples if sample.is_shown]
    if None in times or len(set(times)) < len(times) or len(times) < count:
        return 0
    known = [time for time in times if time is not None]
    if known[0] != min(known):  # frames before the first key frame: a decoder may leave them out
        return 0
    earliest = sorted(known)[-count]
    needed = count
    for number, sample in reversed(list(enumerate(samples))):
        if not sample.is_shown or sample.time is None:
            continue
        needed -= sample.time >= earliest
        if needed == 0 and sample.is_entry and sample.time <= earliest:
            return number
    return 0


def times_after(samples: list[Sample], start: int) -> list[int]:
    """When the frames from sample `start` on are shown, in that order, leaving out what only an earlier start gives."""
    entry = samples[start].time
    return sorted(
        sample.time
        for sample in samples[start:]
        if sample.is_shown and sample.time is not None and (entry is None or sample.time >= entry)
    )
