"""`results.jsonl`: the result of each line of a batch, one JSON object per line, in the batch's order."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosmos_triton.cli.files import write_atomically

FILE = "results.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of one line.

    index: number of the line, from 0
    outcome: "generated", "prompt_blocked", "video_blocked" or "failed"
    seconds: time spent on the line, including retries
    file: name of the video in the folder of the results; None if there is none
    error: why there is no video
    fingerprint: hash of all that determines the video
    report: the server's report
    """

    index: int
    visual_input: str | None
    prompt: str | None
    outcome: str
    seconds: float = 0.0
    file: str | None = None
    error: str | None = None
    fingerprint: str | None = None
    report: dict[str, Any] | None = None

    @property
    def is_sound(self) -> bool:
        """Whether the values read from a file have the types above, as far as anything depends on them."""
        has_report = self.report is None or isinstance(self.report, dict)
        return type(self.index) is int and self.file in (None, video_name(self.index)) and has_report


def video_name(index: int) -> str:
    """The file of a line's video."""
    return f"{index}.mp4"


def read_results(folder: Path) -> dict[int, Result]:
    """The results of an earlier run by index. Invalid lines are ignored."""
    try:
        lines = (folder / FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    results = {}
    for line in lines:
        with suppress(ValueError, TypeError, RecursionError):
            result = Result(**json.loads(line))
            if result.is_sound:
                results[result.index] = result
    return results


def write_results(folder: Path, results: dict[int, Result]) -> None:
    """Rewrite the file, so that it is complete and in order at any time."""
    lines = (json.dumps(asdict(results[index])) + "\n" for index in sorted(results))
    write_atomically(folder / FILE, "".join(lines).encode())
