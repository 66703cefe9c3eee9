"""`results.jsonl`: the result of each line of a batch, one JSON object per line, in the batch's order."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosmos_triton.cli.files import write_atomically

_FILE = "results.jsonl"


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


def read_results(folder: Path) -> dict[int, Result]:
    """The results of an earlier run by index. Invalid lines are ignored."""
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
    """Rewrite the file, so that it is complete and in order at any time."""
    lines = (json.dumps(asdict(results[index])) + "\n" for index in sorted(results))
    write_atomically(folder / _FILE, "".join(lines).encode())
