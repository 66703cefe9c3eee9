"""Figures of a scenario, which the chaos lane prints at its end."""

from __future__ import annotations

from typing import Protocol


class Note(Protocol):
    """Keeps figures: seconds, and how much was lost or left."""

    def __call__(self, scenario: str, **figures: object) -> None: ...
