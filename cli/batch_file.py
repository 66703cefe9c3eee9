"""Batch files: JSON lines with a `visual_input`, and for video2world models a `prompt`."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short_repr

# How a file begins, and its encoding: a byte order mark, or the brace of the first line. PowerShell writes UTF-16.
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark its own begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"{\0", "utf-16-le"),
    (b"\0{", "utf-16-be"),
)
_MAX_PATH_BYTES = 4096
_LINE_BREAK = re.compile(r"\r\n|\n|\r")  # splitlines() knows more, which JSON allows inside a string


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
    """Read a batch file in UTF-8, or with a byte order mark UTF-16 or UTF-32. Blank lines keep their number.

    Args:
        path: the batch file. Paths in it are relative to the working directory, as in the reference scripts.
        prompts_path: a second file whose line N may have the `prompt` for line N of the first.
        takes_prompt: whether a prompt is required in every line; otherwise none may have one.

    Raises:
        OSError: a file cannot be read.
    """
    prompts = dict(_numbered(prompts_path)) if prompts_path else {}
    return [_read_line(number, text, prompts.get(number, "{}"), takes_prompt) for number, text in _numbered(path)]


def _numbered(path: Path) -> list[tuple[int, str]]:
    content = path.read_bytes()
    encoding = next((encoding for beginning, encoding in _ENCODINGS if content.startswith(beginning)), "utf-8")
    lines = _LINE_BREAK.split(content.decode(encoding, errors="replace"))
    lines = [line.removeprefix("\ufeff") for line in lines]  # of files that were joined
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _read_line(number: int, text: str, prompt_text: str, takes_prompt: bool) -> BatchLine:
    try:
        fields = {**_json_object(prompt_text), **_json_object(text)}
        visual_input = _path(fields)
        if takes_prompt:
            return BatchLine(number, visual_input, _prompt(fields))
    except ValueError as error:
        return BatchLine(number, problem=str(error))
    if "prompt" in fields:
        return BatchLine(number, visual_input, problem="prompt: a base model takes none")
    return BatchLine(number, visual_input)


def _json_object(text: str) -> dict[str, object]:
    if "\ufffd" in text:
        raise ValueError("not valid UTF-8, nor UTF-16 with a byte order mark")
    try:
        fields = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError('not a JSON object such as {"visual_input": "clip.mp4"}')
    return fields


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    [(name, count)] = Counter(name for name, _ in pairs).most_common(1) or [("", 0)]
    if count > 1:
        raise ValueError(f"{short_repr(name)} is given {count} times")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _path(fields: dict[str, object]) -> str:
    value = _string(fields, "visual_input")
    try:
        if b"\0" not in (encoded := os.fsencode(value)) and len(encoded) < _MAX_PATH_BYTES:
            return value
    except UnicodeEncodeError:  # a lone surrogate, or an encoding of file names other than UTF-8
        pass
    raise ValueError(f"visual_input: value {short_repr(value)}; accepted: a path")


def _prompt(fields: dict[str, object]) -> str:
    value = _string(fields, "prompt")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"prompt: value {short_repr(value)}; accepted: a text without lone surrogates") from None
    return value


def _string(fields: dict[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        accepted = f"value {short_repr(value)}; accepted: a string" if name in fields else "missing"
        raise ValueError(f"{name}: {accepted}")
    return value
