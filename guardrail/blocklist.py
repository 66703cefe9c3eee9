"""The blocklist: word lists that a prompt is matched against. The only guardrail without a network.

Three lists with a word or phrase per line:

- `custom`: blocked in obfuscated spellings too (better-profanity)
- `whitelist`: tokens that are allowed although they contain a custom word
- `exact_match`: blocked as whole words, and with one typo
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
from cosmos_triton.guardrail.readings import TooManyLayersError, readings, spelled_out
from cosmos_triton.guardrail.spellings import PLACEHOLDER, LookAlikes
from cosmos_triton.guardrail.verdict import Verdict
from cosmos_triton.runtime.releases import COSMOS_1_0, Release

LISTS = ("custom", "whitelist", "exact_match")  # folders of the released blocklist
SPELLED_OUT_MIN_CHARS = 3  # A B is no way to write AB
REVERSED_MIN_CHARS = 4  # many shorter words are abbreviations or units backwards
_WORD = re.compile(r"[\w@$*'\"]{2,}", re.ASCII)


class Violation(Enum):
    """Why a prompt is blocked: the category of the verdict, and the reason for the user."""

    EMPTY = "empty", "the prompt is empty"
    CUSTOM = "custom", "the prompt has a blocked word, or one that looks like it"
    WHOLE_WORD = "whole_word", "the prompt has a blocked word"
    NEAR_MATCH = "near_match", "the prompt has a word that resembles a blocked one"
    MISSPELT = (
        "misspelt",
        "the prompt has what may be a blocked word with a letter added, missing, exchanged or swapped",
    )
    SPELLED_OUT = "spelled_out", "the prompt spells out a blocked word letter by letter"
    REVERSED = "reversed", "the prompt has a blocked word written backwards"
    ENCODED = "encoded", "the prompt is encoded several times over and cannot be read"

    def __init__(self, category: str, reason: str) -> None:
        self.category = category
        self.reason = reason


class Blocklist:
    """Matches prompts against the lists, ignoring case. Blank lines of a list are ignored.

    Args:
        lemmatize: returns the lemma of a lower-case word.
        is_word: whether a lower-case word is English. Such a word is never taken for a misspelt blocked word; neither
            is a whitelisted one.
        near_match_min_chars: shorter entries of `exact_match` match as whole words only.
        near_match_letters: an entry of n letters has a near match where difflib's ratio is (n - letters) / n or more.
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
        near_match_min_chars: int = COSMOS_1_0.near_match_min_chars,
        near_match_letters: float = COSMOS_1_0.near_match_letters,
    ) -> None:
        self.whitelist = frozenset(_entries(whitelist))
        self.exact_match = _entries(exact_match)
        self.lemmatize = lemmatize
        self.is_word = is_word
        self._tokenize = NLTKWordTokenizer().tokenize
        custom = [word for word in _entries(custom) if word not in self.whitelist]
        self._custom = LookAlikes(custom)
        listed = [*custom, *(entry for entry in self.exact_match if entry not in self.whitelist)]
        self._spelled_out = LookAlikes(_spelled_out_entries(listed))
        self._reversed = LookAlikes(_reversed_entries(listed))
        self._near_match_letters = near_match_letters
        self._near = NearMatches(entry for entry in self.exact_match if len(entry) >= near_match_min_chars)

    @classmethod
    def from_folder(cls, folder: Path, nltk_data: Path, release: Release = COSMOS_1_0) -> Blocklist:
        """Read the lists from all files in `folder`/custom, /whitelist and /exact_match, and WordNet from `nltk_data`.
        The thresholds are those of `release`.

        Raises:
            ValueError: the custom or the exact-match list is empty, so the installation is broken.
            FileNotFoundError: `nltk_data` has no unpacked WordNet.
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
            near_match_min_chars=release.near_match_min_chars,
            near_match_letters=release.near_match_letters,
        )

    def judge(self, prompt: str) -> Verdict:
        violation = self.violation(prompt)
        if violation is None:
            return Verdict.passed(self.name)
        return Verdict.blocked(self.name, violation.category, reason=violation.reason)

    def violation(self, prompt: str) -> Violation | None:
        """The first rule that the prompt violates, or None. Every reading of it is matched."""
        if not prompt.strip():
            return Violation.EMPTY
        try:
            return next(filter(None, map(self._violation, readings(prompt))), None)
        except TooManyLayersError:
            return Violation.ENCODED

    def _violation(self, text: str) -> Violation | None:
        lemmas = " ".join(self.lemmatize(token.lower()) for token in self._tokenize(text))
        if self.has_custom_word(text) or self.has_custom_word(lemmas):
            return Violation.CUSTOM
        return self._exact_match(text.lower().split()) or self._disguised(text.lower())

    def has_custom_word(self, text: str) -> bool:
        """Whether the text contains a custom word, other than within whitelisted tokens."""
        return self._custom.found_in(re.sub(r"\S+", self._mask_whitelisted, text))

    def _mask_whitelisted(self, token: re.Match[str]) -> str:
        """Only a token that contains a custom word by itself is masked: it must not hide a longer phrase."""
        word = token.group().strip(string.punctuation).lower()
        is_masked = word in self.whitelist and self._custom.found_in(word)
        return PLACEHOLDER if is_masked else token.group()

    def _exact_match(self, words: list[str]) -> Violation | None:
        """Match the lower-case words of a prompt against the exact-match list."""
        text = " ".join(words)
        near = self._near.with_inserted_letter(words)
        for entry in self.exact_match:
            if entry in text and re.search(rf"(?<!\w){re.escape(entry)}(?!\w)", text):
                return Violation.WHOLE_WORD
            if entry in near and self._admits_inserted_letter(entry):
                return Violation.NEAR_MATCH
        stripped = [word.strip(string.punctuation) for word in words]
        for window in self._near.misspelt([word for word in stripped if word]):
            if not all(word in self.whitelist or self.is_word(word) for word in window.split()):
                return Violation.MISSPELT
        return None

    def _admits_inserted_letter(self, entry: str) -> bool:
        """Whether the entry with a letter inserted is a near match: the ratio is 2n / (2n + 1)."""
        n = len(entry)
        return self._near_match_letters * (2 * n + 1) >= n

    def _disguised(self, text: str) -> Violation | None:
        """Match words spelled out or backwards in lower-case text. What is English as it stands is not backwards."""
        if any(self._spelled_out.found_in(" ".join(run)) for run in spelled_out(text)):
            return Violation.SPELLED_OUT
        if self._reversed.found_in(text) and self._reversed.found_in(_WORD.sub(self._mask_english, text)):
            return Violation.REVERSED
        return None

    def _mask_english(self, token: re.Match[str]) -> str:
        word = token.group().strip("'\"")
        return PLACEHOLDER if word in self.whitelist or self.is_word(word) else token.group()


class NearMatches:
    """Finds entries with one typo, in windows of as many neighbouring words as an entry has.

    The reference finds inserted letters only, and in Predict1 not even those: difflib's ratio is less for a letter
    deleted or substituted.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        # Both by the number of words in an entry.
        self._entries: defaultdict[int, set[str]] = defaultdict(set)
        self._deletions: defaultdict[int, set[tuple[int, str]]] = defaultdict(set)
        for entry in entries:
            width = entry.count(" ") + 1
            self._entries[width].add(entry)
            self._deletions[width].update(_deletions(entry))

    def with_inserted_letter(self, words: list[str]) -> set[str]:
        """The entries that occur with one letter inserted."""
        found = set()
        for width, window in self._windows(words, extra_letters=1):
            found |= {shorter for _, shorter in _deletions(window) if shorter in self._entries[width]}
        return found

    def misspelt(self, words: list[str]) -> Iterator[str]:
        """The windows that are an entry with a letter inserted, deleted or substituted, or two neighbours swapped."""
        for width, window in self._windows(words, extra_letters=1):
            deletions, entries = self._deletions[width], self._entries[width]
            has_insertion = any(shorter in entries for _, shorter in _deletions(window))
            has_deletion = any((position, window) in deletions for position in range(len(window) + 1))
            has_substitution = any(deletion in deletions for deletion in _deletions(window))
            has_transposition = any(transposed in entries for transposed in _transpositions(window))
            if has_insertion or has_deletion or has_substitution or has_transposition:
                yield window

    def _windows(self, words: list[str], *, extra_letters: int) -> Iterator[tuple[int, str]]:
        """Width and text of each distinct window that is no longer than the longest entry and the extra letters."""
        for width, entries in self._entries.items():
            max_length = max(map(len, entries)) + extra_letters
            for window in {" ".join(words[i : i + width]) for i in range(len(words) - width + 1)}:
                if len(window) <= max_length:
                    yield width, window


def _deletions(word: str) -> Iterator[tuple[int, str]]:
    """For each letter, its position and the word without it."""
    return ((i, word[:i] + word[i + 1 :]) for i in range(len(word)))


def _transpositions(word: str) -> Iterator[str]:
    """The word with each pair of neighbours swapped."""
    return (word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1))


def _spelled_out_entries(entries: Iterable[str]) -> Iterator[str]:
    """As they are spelled out, without separators: forwards, and if they are long enough backwards."""
    for entry in entries:
        letters = "".join(character for character in entry if character.isalnum())
        if len(letters) >= SPELLED_OUT_MIN_CHARS:
            yield letters
        if len(letters) >= REVERSED_MIN_CHARS:
            yield letters[::-1]


def _reversed_entries(entries: Iterable[str]) -> Iterator[str]:
    """Backwards, in the singular and the plural."""
    return (form[::-1] for entry in entries if len(entry) >= REVERSED_MIN_CHARS for form in (entry, f"{entry}s"))


def _read_list(folder: Path) -> list[str]:
    files = sorted(path for path in folder.glob("**/*") if path.is_file())
    return _entries(line for path in files for line in path.read_text(encoding="utf-8").splitlines())


def _entries(lines: Iterable[str]) -> list[str]:
    """The entries in lower case with single spaces, without duplicates, in order."""
    normalized = (" ".join(line.lower().split()) for line in lines)
    return list(dict.fromkeys(entry for entry in normalized if entry))
