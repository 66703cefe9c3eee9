"""How frames of any size are fitted to the model's frame size, in numbers. `frames.fit` applies it to pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from cosmos_triton.runtime.errors import InvalidValue

Size = tuple[int, int]  # height, width

SQUARE = Fraction(1)  # a pixel's width by its height
# Beyond this many times the target's pixels, frames are not scaled as a whole: see `Fit.is_windowed`.
_MAX_RESIZED = 16


@dataclass(frozen=True, slots=True)
class Fit:
    """Frames of size `source` are scaled to `resized`, then cropped to `target` at (top, left)."""

    source: Size
    pixel_aspect: Fraction
    resized: Size
    top: int
    left: int
    target: Size

    @classmethod
    def plan(cls, source: Size, target: Size, pixel_aspect: Fraction = SQUARE) -> Fit:
        """The smallest scaling of `source`, as it is displayed, that covers `target`, and its centre crop."""
        height, width = source[0], source[1] * float(pixel_aspect)
        ratio = max(target[0] / height, target[1] / width)
        resized = (math.ceil(ratio * height), math.ceil(ratio * width))
        # round() takes halves to even: part of the released behaviour
        top, left = round((resized[0] - target[0]) / 2), round((resized[1] - target[1]) / 2)
        return cls(source, pixel_aspect, resized, top, left, target)

    @property
    def is_windowed(self) -> bool:
        """Whether only the crop's window is computed, since the whole of `resized` would take memory without bound.

        What is in the window is the same up to rounding. Frames of ordinary shapes are scaled as a whole: a clip's
        tokens depend on the last bit.
        """
        return math.prod(self.resized) > _MAX_RESIZED * math.prod(self.target)

    def describe(self) -> str:
        """For the report."""
        steps = []
        if self.pixel_aspect != SQUARE:
            aspect = f"{self.pixel_aspect.numerator}:{self.pixel_aspect.denominator}"
            steps.append(f"pixels of {aspect}, shown as {_text(self._displayed())}")
        if self.resized != self.source:
            steps.append(f"scaled from {_text(self.source)} to {_text(self.resized)}")
        if self.target != self.resized:
            steps.append(f"cropped to {_text(self.target)}")
        return ", ".join(steps) or "used as it is"

    def _displayed(self) -> Size:
        return self.source[0], round(self.source[1] * self.pixel_aspect)


def pixel_aspect_of(terms: Sequence[int]) -> Fraction:
    """The pixel aspect of a tensor of two terms.

    Raises:
        InvalidValue: one is not above 0.
    """
    width, height = (int(term) for term in terms)
    if width <= 0 or height <= 0:
        raise InvalidValue("pixel_aspect", f"{width}:{height}", "a pixel's width and height, both above 0")
    return Fraction(width, height)


def _text(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
