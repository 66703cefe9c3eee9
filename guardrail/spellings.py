"""Obfuscated spellings: words that a person can read, written so that they do not equal the entry of a word list.

`fold` maps letters of other scripts and styles to the ASCII letters that they look like. `LookAlikes` finds words in
better-profanity's spellings: substituted characters, and letters with separators between them.
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
# Alphabets from A to Z that Unicode does not decompose: in black circles, in black squares, and of flags.
_ASCII |= {first + i: chr(ord("a") + i) for first in (0x1F150, 0x1F170, 0x1F1E6) for i in range(26)}

# Replaces a token that was taken out of a text, so that its neighbours are not joined. No word contains it.
PLACEHOLDER = "\ue000"
_INVISIBLE = {"Mn", "Me", "Cf"}  # Unicode categories: accents, enclosures, and zero-width or other format characters


def to_ascii(text: str) -> str:
    """`text` with each run of characters outside ASCII replaced by one space."""
    return re.sub(r"[^\x00-\x7f]+", " ", text)


def visible(text: str) -> str:
    """`text` in Unicode's compatibility forms, without accents and characters that show nothing."""
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(character for character in decomposed if unicodedata.category(character) not in _INVISIBLE)


def fold(text: str) -> str:
    """`text` in lower-case ASCII as it looks; each run of characters that look like no ASCII becomes one space."""
    return to_ascii(visible(text).lower().translate(_ASCII))


class LookAlikes:
    """Finds words of a list in ASCII text, in any of better-profanity's spellings: `@` for a, `1` for i or l, and so
    on, and spelled out over neighbouring tokens (s p e l l e d).

    The library compares every token with every word. Here words are hashed into buckets by a canonical spelling, tokens
    are joined while they begin a word, and are only compared with their bucket. Three gaps of the library are closed:
    it skips texts of one character, never joins a last token of one character, nor more than some six tokens.
    """

    def __init__(self, words: Iterable[str]) -> None:
        mapping = Profanity().CHARS_MAPPING
        self._canonical = str.maketrans(_representatives(mapping))
        self._buckets: defaultdict[str, list[VaryingString]] = defaultdict(list)
        for word in words:
            self._buckets[word.translate(self._canonical)].append(VaryingString(word, char_map=mapping))
        self._beginnings = {bucket[:length] for bucket in self._buckets for length in range(1, len(bucket) + 1)}
        word_characters = "".join(chr(code) for code in range(128) if chr(code) in ALLOWED_CHARACTERS)
        self._token = re.compile(f"[{re.escape(word_characters)}{PLACEHOLDER}]+")

    def found_in(self, text: str) -> bool:
        """Whether the text contains a word."""
        text = text.lower()
        spans = [match.span() for match in self._token.finditer(text)]
        canonical = text.translate(self._canonical)
        return any(self._begins_at(index, spans, text, canonical) for index in range(len(spans)))

    def _begins_at(self, index: int, spans: list[tuple[int, int]], text: str, canonical: str) -> bool:
        """Whether a word begins with the token at spans[index]."""
        start = spans[index][0]
        joined = ""  # tokens without the separators between them
        for left, right in (spans[i] for i in range(index, len(spans))):
            joined += canonical[left:right]
            whole = canonical[start:right]  # with the separators, as in a phrase
            if joined in self._buckets and self._is_listed("".join(self._token.findall(text[start:right])), joined):
                return True
            if whole in self._buckets and self._is_listed(text[start:right], whole):
                return True
            if joined not in self._beginnings and whole not in self._beginnings:
                return False
        return False

    def _is_listed(self, token: str, bucket: str) -> bool:
        return token in self._buckets[bucket]


def _representatives(spellings: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """For each character, one that represents all it may stand for, directly or through others (transitive closure)."""
    group: dict[str, set[str]] = {}
    for letter, variants in spellings.items():
        merged = {letter, *variants}.union(*(group.get(c, ()) for c in (letter, *variants)))
        group.update(dict.fromkeys(merged, merged))
    return {character: min(members) for character, members in group.items()}
