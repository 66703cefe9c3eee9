"""Batch files: JSON lines with a `visual_input`, and for video2world models a `prompt`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One line; `number` counts from 1. A line with a `problem` cannot be run."""

    number: int
    visual_input: str | None = None
    prompt: str | None = None
    problem: str | None = None

    @property
    def index(self) -> int:
        """The N of `N.mp4`."""
        return self.number - 1


def read_batch(path: Path, *, prompts_path: Path | None = None, takes_prompt: bool) -> list[BatchLine]:
    """Read a batch file. Blank lines are skipped, but keep their number.

    Args:
        path: the batch file. Paths in it are relative to the working directory, as in the reference scripts.
        prompts_path: a second file whose line N may have the `prompt` for line N of the first.
        takes_prompt: whether a prompt is required in every line; otherwise none may have one.

    Raises:
        OSError: a file cannot be read.
    """
    prompts = dict(_numbered(prompts_path)) if prompts_path else {}
    return [_read_line(number, text, prompts.get(number, b"{}"), takes_prompt) for number, text in _numbered(path)]


def _numbered(path: Path) -> list[tuple[int, bytes]]:
    lines = path.read_bytes().splitlines()
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _read_line(number: int, text: bytes, prompt_text: bytes, takes_prompt: bool) -> BatchLine:
    try:
        fields = {**_json_object(prompt_text), **_json_object(text)}
        visual_input = _string(fields, "visual_input")
        if takes_prompt:
            return BatchLine(number, visual_input, _string(fields, "prompt"))
    except ValueError as error:
        return BatchLine(number, problem=str(error))
    if "prompt" in fields:
        return BatchLine(number, visual_input, problem="prompt: a base model takes none")
    return BatchLine(number, visual_input)


def _json_object(text: bytes) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError('not a JSON object such as {"visual_input": "clip.mp4"}')
    return fields


def _string(fields: dict[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name}: " + (f"value {value!r}; accepted: a string" if name in fields else "missing"))
    return value
