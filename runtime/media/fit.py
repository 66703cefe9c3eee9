"""How frames of any size are fitted to the model's frame size, in numbers. `frames.fit` applies it to pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

Size = tuple[int, int]  # height, width


@dataclass(frozen=True, slots=True)
class Fit:
    """Frames of size `source` are scaled to `resized`, then cropped to `target` at (top, left)."""

    source: Size
    resized: Size
    top: int
    left: int
    target: Size

    @classmethod
    def plan(cls, source: Size, target: Size) -> Fit:
        """The smallest scaling of `source` that covers `target`, and its centre crop."""
        ratio = max(target[0] / source[0], target[1] / source[1])
        resized = (math.ceil(ratio * source[0]), math.ceil(ratio * source[1]))
        # round() takes halves to even: part of the released behaviour
        top, left = round((resized[0] - target[0]) / 2), round((resized[1] - target[1]) / 2)
        return cls(source, resized, top, left, target)

    def describe(self) -> str:
        """For the report."""
        steps = []
        if self.resized != self.source:
            steps.append(f"scaled from {_text(self.source)} to {_text(self.resized)}")
        if self.target != self.resized:
            steps.append(f"cropped to {_text(self.target)}")
        return ", ".join(steps) or "used as it is"


def _text(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
