"""The content policy in Aegis's question: this project's own text, or one by the server's operator."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from cosmos_triton.runtime.errors import CheckpointError

CATEGORIES = tuple(f"O{number}" for number in range(1, 14))
OWN_POLICY = Path(__file__).with_name("aegis_policy.txt")
MARKERS = ("[INST]", "[/INST]", "UNSAFE CONTENT CATEGORIES>", "CONVERSATION>")  # of Aegis's prompt template


@dataclass(frozen=True, slots=True)
class Policy:
    """Descriptions of the categories O1 to O13: each is a paragraph that begins with its code and a colon."""

    text: str

    @property
    def sha256(self) -> str:
        """Of the text in UTF-8, for the report."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> Policy:
        """The policy in the file `path`, or this project's own if the file does not exist.

        Raises:
            CheckpointError: the file exists and is not a policy.
        """
        if not os.path.lexists(path):
            return cls.own()
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: {error}; accepted: a text in UTF-8, or no such file") from None
        described = tuple(re.findall(r"^(O\d+):", text, re.MULTILINE))
        if described != CATEGORIES:
            found = ", ".join(described) or "no category"
            raise CheckpointError(f"{path}: describes {found}; accepted: {', '.join(CATEGORIES)}, each 'O1: ...'")
        for marker in MARKERS:
            if marker in text.upper():
                raise CheckpointError(f"{path}: contains {marker!r}; accepted: the categories alone")
        return cls(text)

    @classmethod
    def own(cls) -> Policy:
        return cls(OWN_POLICY.read_text(encoding="utf-8").strip())
