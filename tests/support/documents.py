"""README.md and docs/: their fenced blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from support.paths import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences; `line` is the first one's number in the file."""

    document: Path
    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"

    @property
    def is_script(self) -> bool:
        """Whether its lines only make sense together."""
        return "curl" in self.text

    @property
    def commands(self) -> list[list[str]]:
        """One a line, in words."""
        lines = re.sub(r"\\\n", " ", self.text).splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(language: str) -> list[Block]:
    found: list[Block] = []
    for document in DOCUMENTS:
        text = document.read_text()
        found += [
            Block(document, language, match[2], line=text.count("\n", 0, match.start()) + 1)
            for match in FENCED.finditer(text)
            if match[1] == language
        ]
    return found


def commands() -> list[tuple[str, ...]]:
    """Every different command of all documents."""
    each = (tuple(words) for block in blocks("bash") if not block.is_script for words in block.commands)
    return list(dict.fromkeys(each))
