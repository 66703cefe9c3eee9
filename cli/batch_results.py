"""`results.jsonl`: what became of each line of a batch, one JSON object a line, in the batch's order."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosmos_triton.cli.files import write_whole

_FILE = "results.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one line.

    index: of the line, from 0
    outcome: "generated", "prompt_blocked", "video_blocked" or "failed"
    seconds: spent on the line, waiting for the server's turn included
    file: the video's, in the folder of the results; None without one
    error: why there is no video
    fingerprint: stands for all that the video depends on
    report: the server's
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


def read_results(folder: Path) -> dict[int, Result]:
    """The results of an earlier run by index; lines in another form are passed over."""
    try:
        lines = (folder / _FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    results = {}
    for line in lines:
        try:
            result = Result(**json.loads(line))
        except (ValueError, TypeError):
            continue
        results[result.index] = result
    return results


def write_results(folder: Path, results: dict[int, Result]) -> None:
    """Write the whole file anew, so that it is in order and whole at any time."""
    lines = (json.dumps(asdict(results[index])) + "\n" for index in sorted(results))
    write_whole(folder / _FILE, "".join(lines).encode())
