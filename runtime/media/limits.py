"""What one untrusted file may cost, and how a file is refused."""

from __future__ import annotations

from dataclasses import dataclass

from cosmos_triton.runtime.errors import InvalidValue

FIELD = "visual_input"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Checked against the file's header before anything is decoded, and again on what comes out: headers lie.

    `frame_pixels` is of one frame, `decoded_bytes` of the RGB frames that are kept, `clip_seconds` of playing time,
    `decode_seconds` of wall-clock time.
    """

    file_bytes: int = 64 * MIB
    frame_pixels: int = 4096 * 4096
    decoded_bytes: int = 256 * MIB
    frames: int = 1000
    streams: int = 8
    clip_seconds: float = 300.0
    decode_seconds: float = 10.0


LIMITS = Limits()


def refused(value: str, accepted: str) -> InvalidValue:
    """The error for a file that is `value`."""
    return InvalidValue(FIELD, value, accepted)


def incomplete(what: str) -> InvalidValue:
    """The error for a file that ends, or contradicts itself, where more was announced."""
    return refused(what, "a complete, undamaged file")
