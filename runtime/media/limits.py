"""Limits on what one untrusted file may cost, and the errors for files that are refused."""

from __future__ import annotations

from dataclasses import dataclass

from cosmos_triton.runtime.errors import InvalidValue

FIELD = "visual_input"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Checked against the file's header before decoding, and again on the decoded frames, since headers can lie.

    file_bytes: size of the file
    side_pixels: width, and height; no decoder takes much longer ones
    frame_pixels: width times height of a clip's frames; larger pictures are halved
    picture_pixels: width times height of a picture; phones make up to 8192x6144
    decoded_bytes: size of the RGB frames that are kept
    frames: number of frames of a clip
    streams: number of tracks of an mp4
    clip_seconds: playing time
    cpu_seconds: CPU time of decoding a clip; unlike wall-clock time, it does not depend on the load
    """

    file_bytes: int = 64 * MIB
    side_pixels: int = 1 << 18
    frame_pixels: int = 4096 * 4096
    picture_pixels: int = 8192 * 6144
    decoded_bytes: int = 256 * MIB
    frames: int = 1000
    streams: int = 8
    clip_seconds: float = 300.0
    cpu_seconds: float = 60.0


LIMITS = Limits()


def refused(value: str, accepted: str) -> InvalidValue:
    """The error for a file described by `value`."""
    return InvalidValue(FIELD, value, accepted)


def incomplete(what: str) -> InvalidValue:
    """The error for a truncated or inconsistent file."""
    return refused(what, "a complete, undamaged file")
