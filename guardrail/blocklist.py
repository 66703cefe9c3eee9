"""The word lists that a prompt is held against: the first guardrail, and the only one without a network.

Three lists, a word or phrase a line. `custom`: blocked in look-alike spellings too (better-profanity). `whitelist`:
tokens that may contain a custom word. `exact_match`: blocked as whole words, and with one letter too many.
"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from enum import StrEnum
from pathlib import Path

from better_profanity import Profanity
from better_profanity.varying_string import VaryingString
from nltk.tokenize import NLTKWordTokenizer

from cosmos_triton.guardrail.lemmas import WordNetLemmatizer
from cosmos_triton.guardrail.verdict import Verdict, fail_closed

LISTS = ("custom", "whitelist", "exact_match")  # folders of the released blocklist

# Neither can stand in a prompt, which is ASCII by then. The library's own mark, `*`, people do type.
CENSORED = "\ue000"
EXCUSED = "\U0001d6a4"  # a letter to the library: the words to its left and right do not become neighbours


class Violation(StrEnum):
    """Why a prompt is blocked, in words for the user."""

    EMPTY = "the prompt is empty"
    CUSTOM = "the prompt has a blocked word, or one that looks like it"
    WHOLE_WORD = "the prompt has a blocked word"
    NEAR_MATCH = "the prompt has a word that resembles a blocked one"


class Blocklist:
    """Holds prompts against the lists; upper and lower case do not matter, blank lines are no words.

    Args:
        lemmatize: the dictionary form of a lower-case word.
        near_match_min_chars: shorter entries of `exact_match` are sought as whole words only.
        near_match_letters: see `resembles`.
    """

    name = "blocklist"

    def __init__(
        self,
        *,
        custom: Iterable[str],
        whitelist: Iterable[str],
        exact_match: Iterable[str],
        lemmatize: Callable[[str], str],
        near_match_min_chars: int = 4,
        near_match_letters: float = 0.5,
    ) -> None:
        self.whitelist = frozenset(_entries(whitelist))
        self.exact_match = _entries(exact_match)
        self.lemmatize = lemmatize
        self.near_match_min_chars = near_match_min_chars
        self.near_match_letters = near_match_letters
        self._tokenize = NLTKWordTokenizer().tokenize
        words = [word for word in _entries(custom) if word not in self.whitelist]
        # The constructor loads the library's own list, whose longest phrase sets how many words are tried as one
        # (s p e l l e d o u t). That reach stays; the list does not, unless it were replaced by an empty one.
        self._profanity = Profanity()
        self._profanity.load_censor_words([*words, CENSORED])
        self._profanity.CENSOR_WORDSET = _LookAlikes(self._profanity.CENSOR_WORDSET, self._profanity.CHARS_MAPPING)

    @classmethod
    def from_folder(cls, folder: Path, nltk_data: Path) -> Blocklist:
        """Lists from every file under `folder`/custom, /whitelist and /exact_match, lemmas from `nltk_data`.

        Raises:
            ValueError: there is no custom or no exact-match word, so the installation is broken.
            FileNotFoundError: `nltk_data` holds no unpacked WordNet.
        """
        lists = {name: _read_list(folder / name) for name in LISTS}
        for name in ("custom", "exact_match"):
            if not lists[name]:
                raise ValueError(f"{folder / name}: no file with words, expected one word or phrase a line")
        return cls(
            custom=lists["custom"],
            whitelist=lists["whitelist"],
            exact_match=lists["exact_match"],
            lemmatize=WordNetLemmatizer(nltk_data),
        )

    @fail_closed
    def judge(self, prompt: str) -> Verdict:
        violation = self.violation(prompt)
        return Verdict(violation is None, self.name, violation or "")

    def violation(self, prompt: str) -> Violation | None:
        """The first rule that the prompt breaks, or None."""
        if not prompt.strip():
            return Violation.EMPTY
        text = to_ascii(prompt)
        lemmas = " ".join(self.lemmatize(token.lower()) for token in self._tokenize(text))
        if self.has_custom_word(text) or self.has_custom_word(lemmas):
            return Violation.CUSTOM
        return self._exact_match(text.lower().split())

    def has_custom_word(self, text: str) -> bool:
        """Whether a custom word is left when the whitelisted tokens that hold one are taken out."""
        return CENSORED in self.mark(re.sub(r"\S+", self._excuse, text))

    def mark(self, text: str) -> str:
        """Text with four CENSORED in place of each custom word."""
        return self._profanity.censor(text, CENSORED)

    def _excuse(self, token: re.Match[str]) -> str:
        """A whitelisted token is taken out only if it is censored by itself: it cannot excuse a longer phrase."""
        word = token.group().strip(string.punctuation).lower()
        is_excused = word in self.whitelist and CENSORED in self.mark(word)
        return EXCUSED if is_excused else token.group()

    def _exact_match(self, words: list[str]) -> Violation | None:
        """Holds the lower-case words of a prompt against the exact-match list."""
        text = " ".join(words)
        windows: dict[int, set[str]] = {}  # by how many words stand in one
        for entry in self.exact_match:
            if entry in text and re.search(rf"(?<!\w){re.escape(entry)}(?!\w)", text):
                return Violation.WHOLE_WORD
            if len(entry) < self.near_match_min_chars:
                continue
            width = entry.count(" ") + 1
            if width not in windows:
                windows[width] = {" ".join(words[i : i + width]) for i in range(len(words) - width + 1)}
            if any(resembles(window, entry, self.near_match_letters) for window in windows[width]):
                return Violation.NEAR_MATCH
        return None


def resembles(window: str, entry: str, letters: float) -> bool:
    """Whether difflib's similarity of the two is at least (n - letters) / n, for an entry of n letters.

    For half a letter that says: the window is the entry with at most one letter inserted. One letter missing or
    exchanged is not enough.
    """
    least = (len(entry) - letters) / len(entry) * (len(window) + len(entry)) / 2  # matching letters
    if min(len(window), len(entry)) < least or sum(letter in entry for letter in window) < least:
        return False  # what difflib could find at most, at a hundredth of its price
    return SequenceMatcher(None, window, entry).ratio() >= (len(entry) - letters) / len(entry)


def to_ascii(text: str) -> str:
    """Text with each run of other characters as one blank."""
    return re.sub(r"[^\x00-\x7f]+", " ", text)


class _LookAlikes:
    """A drop-in for better-profanity's list of words, which compares a token with every one of them in turn.

    Words whose letters can be spelled alike share a bucket, so a token meets only those it could be.
    """

    def __init__(self, words: list[VaryingString], spellings: dict[str, tuple[str, ...]]) -> None:
        self._alike = str.maketrans(_representatives(spellings))
        self._buckets: defaultdict[str, list[VaryingString]] = defaultdict(list)
        for word in words:
            self._buckets[str(word).translate(self._alike)].append(word)

    def __contains__(self, token: str) -> bool:
        return token in self._buckets.get(token.translate(self._alike), ())


def _representatives(spellings: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """One character for all that stand for one another, directly or through a third."""
    group: dict[str, set[str]] = {}
    for letter, variants in spellings.items():
        merged = {letter, *variants}.union(*(group.get(c, ()) for c in (letter, *variants)))
        group.update(dict.fromkeys(merged, merged))
    return {character: min(members) for character, members in group.items()}


def _read_list(folder: Path) -> list[str]:
    files = sorted(path for path in folder.glob("**/*") if path.is_file())
    return _entries(line for path in files for line in path.read_text(encoding="utf-8").splitlines())


def _entries(lines: Iterable[str]) -> list[str]:
    """Lower case, single blanks, each once, in their order."""
    return list(dict.fromkeys(entry for line in lines if (entry := " ".join(line.lower().split()))))
