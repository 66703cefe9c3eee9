"""One check a family: it builds the network from the case's config and compares every recorded output."""

from __future__ import annotations

from collections.abc import Callable

from parity.case import Case
from parity.families import (
    ar,
    diffusion,
    guardrails,
    media,
    text,
    tokenizers,
)

FAMILIES: dict[str, Callable[[Case], None]] = {
    **ar.FAMILIES,
    **diffusion.FAMILIES,
    **guardrails.FAMILIES,
    **media.FAMILIES,
    **text.FAMILIES,
    **tokenizers.FAMILIES,
}
