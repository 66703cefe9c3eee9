"""How frames of any size are brought to the model's: no pixels here, only numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fit:
    """Frames are scaled to `resized` (height, width), then cropped to `target` at (top, left)."""

    resized: tuple[int, int]
    top: int
    left: int
    target: tuple[int, int]

    @classmethod
    def plan(cls, size: tuple[int, int], target: tuple[int, int]) -> Fit:
        """The smallest scaling of `size` that covers `target`, and its centre crop; sizes are (height, width)."""
        (height, width), (target_height, target_width) = size, target
        ratio = max(target_width / width, target_height / height)
        resized = (math.ceil(ratio * height), math.ceil(ratio * width))
        # round() takes halves to even: part of the released behaviour
        top, left = round((resized[0] - target_height) / 2), round((resized[1] - target_width) / 2)
        return cls(resized=resized, top=top, left=left, target=target)

    def describe(self, size: tuple[int, int]) -> str:
        """In words, for the user."""
        steps = []
        if self.resized != size:
            steps.append(f"scaled from {size[1]}x{size[0]} to {self.resized[1]}x{self.resized[0]}")
        if self.target != self.resized:
            steps.append(f"cropped to {self.target[1]}x{self.target[0]}")
        return ", ".join(steps) or "used as it is"
