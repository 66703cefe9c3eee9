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

# Replaces a token that was taken out of a text, so that its neighbours are not joined. No word contains it.
PLACEHOLDER = "\ue000"
_INVISIBLE = {"Mn", "Me", "Cf"}  # Unicode categories: accents, enclosures, and zero-width or other format characters


def to_ascii(text: str) -> str:
    """`text` with each run of characters outside ASCII replaced by one space."""
    return re.sub(r"[^\x00-\x7f]+", " ", text)


def fold(text: str) -> str:
    """`text` in lower-case ASCII as it looks; each run of characters that look like no ASCII becomes one space."""
    decomposed = unicodedata.normalize("NFKD", text)
    visible = "".join(character for character in decomposed if unicodedata.category(character) not in _INVISIBLE)
    return to_ascii(visible.lower().translate(_ASCII))


class LookAlikes:
    """Finds words of a list in ASCII text, in any of better-profanity's spellings: `@` for a, `1` for i or l, and so
    on, and spelled out over neighbouring tokens (s p e l l e d).

    The library compares every token with every word. Here words are hashed into buckets by a canonical spelling, and a
    token is only compared with its bucket. Two gaps of the library are closed: it skips texts of one character, and
    never joins a last token of one character.
    """

    def __init__(self, words: Iterable[str]) -> None:
        library = Profanity()  # for its tables, and for how many tokens it joins, which depends on its own words
        self._canonical = str.maketrans(_representatives(library.CHARS_MAPPING))
        self._buckets: defaultdict[str, list[VaryingString]] = defaultdict(list)
        self._max_joined = library.MAX_NUMBER_COMBINATIONS
        for word in words:
            spellings = VaryingString(word, char_map=library.CHARS_MAPPING)
            self._buckets[word.translate(self._canonical)].append(spellings)
            separators = sum(character not in ALLOWED_CHARACTERS for character in word)
            self._max_joined = max(self._max_joined, separators)
        self._longest = max(map(len, self._buckets), default=0)
        word_characters = "".join(chr(code) for code in range(128) if chr(code) in ALLOWED_CHARACTERS)
        self._token = re.compile(f"[{re.escape(word_characters)}{PLACEHOLDER}]+")

    def found_in(self, text: str) -> bool:
        """Whether the text contains a word."""
        text = text.lower()
        canonical, buckets, longest = text.translate(self._canonical), self._buckets, self._longest
        spans = [match.span() for match in self._token.finditer(text)]
        for index, (start, end) in enumerate(spans):
            joined = canonical[start:end]  # tokens without the separators between them
            if joined in buckets and self._is_listed(text[start:end], joined):
                return True
            for following in range(index + 1, min(index + 1 + self._max_joined, len(spans))):
                if len(joined) >= longest:
                    break
                left, right = spans[following]
                joined += canonical[left:right]
                if joined in buckets and self._is_listed("".join(self._token.findall(text[start:right])), joined):
                    return True
                whole = canonical[start:right]  # with the separators, as in a phrase
                if whole in buckets and self._is_listed(text[start:right], whole):
                    return True
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
