"""How a word can be written so that people read it and a list does not have it.

Two tools. `fold` brings letters of other scripts and styles to the ASCII letter that they look like. `LookAlikes` finds
words in better-profanity's spellings: other characters for a letter, and letters apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from better_profanity import Profanity
from better_profanity.constants import ALLOWED_CHARACTERS
from better_profanity.varying_string import VaryingString

_lines = Path(__file__).with_name("look_alikes.txt").read_text(encoding="utf-8").splitlines()
_letters = dict(line.split() for line in _lines if not line.startswith("#"))
_ASCII = str.maketrans({sign: letter for letter, signs in _letters.items() for sign in signs})

# Stands for a token that is none of the words sought, so that those to its left and right do not become neighbours.
PLACEHOLDER = "\ue000"
_UNSEEN = {"Mn", "Me", "Cf"}  # accents and enclosures; zero-width and other format characters


def to_ascii(text: str) -> str:
    """Text with each run of other characters as one blank."""
    return re.sub(r"[^\x00-\x7f]+", " ", text)


def fold(text: str) -> str:
    """Lower-case ASCII text as a reader sees it; each run of characters that look like no ASCII as one blank."""
    decomposed = unicodedata.normalize("NFKD", text)
    seen = "".join(character for character in decomposed if unicodedata.category(character) not in _UNSEEN)
    return to_ascii(seen.lower().translate(_ASCII))


class LookAlikes:
    """Finds words of a list in ASCII text, in any of better-profanity's spellings: `@` for a, `1` for i or l, and so
    on, and spelled out over neighbouring tokens (s p e l l e d).

    The library compares every token with every word, in time that grows with their product. Here words whose letters
    can be spelled alike share a bucket, and a token meets only those it could be. Nor are two of its gaps kept: it does
    not look at a text of one character, nor join a last token of one.
    """

    def __init__(self, words: Iterable[str]) -> None:
        library = Profanity()  # for its tables, and for how many tokens it reads as one, which its own words set
        self._alike = str.maketrans(_representatives(library.CHARS_MAPPING))
        self._buckets: defaultdict[str, list[VaryingString]] = defaultdict(list)
        self._reach = library.MAX_NUMBER_COMBINATIONS
        for word in words:
            spellings = VaryingString(word, char_map=library.CHARS_MAPPING)
            self._buckets[word.translate(self._alike)].append(spellings)
            self._reach = max(self._reach, sum(character not in ALLOWED_CHARACTERS for character in word))
        self._longest = max(map(len, self._buckets), default=0)
        inner = "".join(chr(code) for code in range(128) if chr(code) in ALLOWED_CHARACTERS)
        self._token = re.compile(f"[{re.escape(inner)}{PLACEHOLDER}]+")

    def found_in(self, text: str) -> bool:
        text = text.lower()
        alike, buckets, longest = text.translate(self._alike), self._buckets, self._longest
        spans = [match.span() for match in self._token.finditer(text)]
        for index, (start, end) in enumerate(spans):
            joined = alike[start:end]  # tokens without what stands between them
            if joined in buckets and self._is_listed(text[start:end], joined):
                return True
            for reach in range(index + 1, min(index + 1 + self._reach, len(spans))):
                if len(joined) >= longest:
                    break
                left, right = spans[reach]
                joined += alike[left:right]
                if joined in buckets and self._is_listed("".join(self._token.findall(text[start:right])), joined):
                    return True
                whole = alike[start:right]
                if whole in buckets and self._is_listed(text[start:right], whole):
                    return True
        return False

    def _is_listed(self, token: str, bucket: str) -> bool:
        return token in self._buckets[bucket]


def _representatives(spellings: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """One character for all that stand for one another, directly or through a third."""
    group: dict[str, set[str]] = {}
    for letter, variants in spellings.items():
        merged = {letter, *variants}.union(*(group.get(c, ()) for c in (letter, *variants)))
        group.update(dict.fromkeys(merged, merged))
    return {character: min(members) for character, members in group.items()}
