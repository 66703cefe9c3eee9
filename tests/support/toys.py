"""`serve` on models that compute nothing: what they play, and what they noted."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path

from support.paths import SUPPORT, TOYS
from support.server import Server


class ToyServer(Server):
    """Serves the toy repository, or the models `only` of another one."""

    def __init__(
        self, folder: Path, repository: Path = TOYS, *, deployment: str = "4b", only: Collection[str] = ()
    ) -> None:
        script = SUPPORT / "serve_toys.py"
        models = [f"--only={model}" for model in only]
        super().__init__([sys.executable, script, repository, f"--deployment={deployment}", *models], folder)


def scenario(**plays: object) -> bytes:
    """A `visual_input` that the toy pipeline plays: see toy_repository/world_generation/1/model.py."""
    return b"toy" + json.dumps(plays).encode()


def notes(path: Path) -> list[dict[str, object]]:
    """What the toys noted so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def noted(path: Path) -> list[object]:
    return [note["what"] for note in notes(path)]
