"""The word lists that a prompt is held against: the first guardrail, and the only one without a network.

Three lists, a word or phrase a line. `custom`: blocked in look-alike spellings too (better-profanity). `whitelist`:
tokens that may contain a custom word. `exact_match`: blocked as whole words, and with one letter wrong.
"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path

from nltk.tokenize import NLTKWordTokenizer

from cosmos_triton.guardrail.lemmas import WordNet
from cosmos_triton.guardrail.spellings import PLACEHOLDER, LookAlikes, fold, to_ascii
from cosmos_triton.guardrail.verdict import Verdict

LISTS = ("custom", "whitelist", "exact_match")  # folders of the released blocklist
NEAR_MATCH_MIN_CHARS = 4  # shorter entries of `exact_match` are sought as whole words only


class Violation(Enum):
    """Why a prompt is blocked: the category, and its words for the user."""

    EMPTY = "empty", "the prompt is empty"
    CUSTOM = "custom", "the prompt has a blocked word, or one that looks like it"
    WHOLE_WORD = "whole_word", "the prompt has a blocked word"
    NEAR_MATCH = "near_match", "the prompt has a word that resembles a blocked one"
    MISSPELT = "misspelt", "the prompt has what may be a blocked word with a letter missing, exchanged or swapped"

    def __init__(self, category: str, reason: str) -> None:
        self.category = category
        self.reason = reason


class Blocklist:
    """Holds prompts against the lists; upper and lower case do not matter, blank lines are no words.

    Args:
        lemmatize: the dictionary form of a lower-case word.
        is_word: whether a lower-case word is English. It then is no misspelt blocked word, nor is a whitelisted one.
    """

    name = "blocklist"

    def __init__(
        self,
        *,
        custom: Iterable[str],
        whitelist: Iterable[str],
        exact_match: Iterable[str],
        lemmatize: Callable[[str], str],
        is_word: Callable[[str], bool],
        near_match_min_chars: int = NEAR_MATCH_MIN_CHARS,
    ) -> None:
        self.whitelist = frozenset(_entries(whitelist))
        self.exact_match = _entries(exact_match)
        self.lemmatize = lemmatize
        self.is_word = is_word
        self._tokenize = NLTKWordTokenizer().tokenize
        self._custom = LookAlikes(word for word in _entries(custom) if word not in self.whitelist)
        self._near = NearMatches(entry for entry in self.exact_match if len(entry) >= near_match_min_chars)

    @classmethod
    def from_folder(cls, folder: Path, nltk_data: Path) -> Blocklist:
        """Lists from every file under `folder`/custom, /whitelist and /exact_match, words from `nltk_data`.

        Raises:
            ValueError: there is no custom or no exact-match word, so the installation is broken.
            FileNotFoundError: `nltk_data` holds no unpacked WordNet.
        """
        lists = {name: _read_list(folder / name) for name in LISTS}
        for name in ("custom", "exact_match"):
            if not lists[name]:
                raise ValueError(f"{folder / name}: no file with words, expected one word or phrase a line")
        wordnet = WordNet(nltk_data)
        return cls(
            custom=lists["custom"],
            whitelist=lists["whitelist"],
            exact_match=lists["exact_match"],
            lemmatize=wordnet.lemma,
            is_word=wordnet.is_word,
        )

    def judge(self, prompt: str) -> Verdict:
        violation = self.violation(prompt)
        if violation is None:
            return Verdict.passed(self.name)
        return Verdict.blocked(self.name, violation.category, reason=violation.reason)

    def violation(self, prompt: str) -> Violation | None:
        """The first rule that the prompt breaks, or None.

        Where it is not ASCII, it is read twice: without what is not, as the lists' words are; and as a person sees it.
        """
        if not prompt.strip():
            return Violation.EMPTY
        if prompt.isascii():
            return self._violation(prompt)
        return self._violation(to_ascii(prompt)) or self._violation(fold(prompt))

    def _violation(self, text: str) -> Violation | None:
        lemmas = " ".join(self.lemmatize(token.lower()) for token in self._tokenize(text))
        if self.has_custom_word(text) or self.has_custom_word(lemmas):
            return Violation.CUSTOM
        return self._exact_match(text.lower().split())

    def has_custom_word(self, text: str) -> bool:
        """Whether a custom word is left when the whitelisted tokens that hold one are taken out."""
        return self._custom.found_in(re.sub(r"\S+", self._excuse, text))

    def _excuse(self, token: re.Match[str]) -> str:
        """A whitelisted token is taken out only if it holds a word by itself: it cannot excuse a longer phrase."""
        word = token.group().strip(string.punctuation).lower()
        is_excused = word in self.whitelist and self._custom.found_in(word)
        return PLACEHOLDER if is_excused else token.group()

    def _exact_match(self, words: list[str]) -> Violation | None:
        """Holds the lower-case words of a prompt against the exact-match list."""
        text = " ".join(words)
        near = self._near.with_a_letter_too_many(words)
        for entry in self.exact_match:
            if entry in text and re.search(rf"(?<!\w){re.escape(entry)}(?!\w)", text):
                return Violation.WHOLE_WORD
            if entry in near:
                return Violation.NEAR_MATCH
        bare = [bare for word in words if (bare := word.strip(string.punctuation))]
        for window in self._near.misspelt(bare):
            if not all(word in self.whitelist or self.is_word(word) for word in window.split()):
                return Violation.MISSPELT
        return None


class NearMatches:
    """Finds entries with one letter wrong among as many neighbouring words as an entry has.

    With one letter too many they resemble each other enough for the reference too: difflib's ratio of an entry of n
    letters and its misspelling is then at least (n - 0.5) / n, and with a letter missing or exchanged it is not.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._entries: defaultdict[int, set[str]] = defaultdict(set)  # by how many words they have
        self._gaps: defaultdict[int, set[tuple[int, str]]] = defaultdict(set)  # a letter's place, and all others
        for entry in entries:
            width = entry.count(" ") + 1
            self._entries[width].add(entry)
            self._gaps[width].update(_gaps(entry))

    def with_a_letter_too_many(self, words: list[str]) -> set[str]:
        """The entries that a letter was put into."""
        return {
            shorter
            for width, window in self._windows(words, spare=1)
            for _, shorter in _gaps(window)
            if shorter in self._entries[width]
        }

    def misspelt(self, words: list[str]) -> Iterator[str]:
        """Neighbouring words that are an entry with a letter missing or exchanged, or two neighbours swapped."""
        for width, window in self._windows(words, spare=0):
            gaps, entries = self._gaps[width], self._entries[width]
            if (
                any((place, window) in gaps for place in range(len(window) + 1))
                or any(gap in gaps for gap in _gaps(window))
                or any(swapped in entries for swapped in _swaps(window))
            ):
                yield window

    def _windows(self, words: list[str], *, spare: int) -> Iterator[tuple[int, str]]:
        """Each distinct one of every width, unless it is too long for an entry with `spare` more letters."""
        for width, entries in self._entries.items():
            longest = max(map(len, entries)) + spare
            windows = {" ".join(words[i : i + width]) for i in range(len(words) - width + 1)}
            yield from ((width, window) for window in windows if len(window) <= longest)


def _gaps(word: str) -> Iterator[tuple[int, str]]:
    """For each letter, its place and the word without it."""
    return ((i, word[:i] + word[i + 1 :]) for i in range(len(word)))


def _swaps(word: str) -> Iterator[str]:
    """The word with each two neighbours swapped."""
    return (word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1))


def _read_list(folder: Path) -> list[str]:
    files = sorted(path for path in folder.glob("**/*") if path.is_file())
    return _entries(line for path in files for line in path.read_text(encoding="utf-8").splitlines())


def _entries(lines: Iterable[str]) -> list[str]:
    """Lower case, single blanks, each once, in their order."""
    return list(dict.fromkeys(entry for line in lines if (entry := " ".join(line.lower().split()))))
