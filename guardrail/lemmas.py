"""Lemmas of English words by WordNet's morphological rules (man page morphy(7WN)).

For nouns they equal those of NLTK's WordNetLemmatizer. NLTK's reader itself is not used: it loads all of WordNet, and
refuses files outside its global search path or with more than one hard link. Two files per part of speech are enough.
"""

from __future__ import annotations

from pathlib import Path

WORDNET = Path("corpora", "wordnet")  # inside an NLTK data folder

# Detachment rules by part of speech: an ending and its replacement.
ENDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("s", ""),
        ("ses", "s"),
        ("ves", "f"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "verb": (
        ("s", ""),
        ("ies", "y"),
        ("es", "e"),
        ("es", ""),
        ("ed", "e"),
        ("ed", ""),
        ("ing", "e"),
        ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}
FILES = tuple(WORDNET / name for part in ENDINGS for name in (f"index.{part}", f"{part}.exc"))

# WordNet has no pronouns, prepositions, conjunctions, articles or auxiliaries.
FUNCTION_WORDS_FILE = Path(__file__).with_name("function_words.txt")


class WordNet:
    """The words and irregular forms of an unpacked WordNet.

    Args:
        nltk_data: an NLTK data folder with FILES.

    Raises:
        FileNotFoundError: a file is missing.
    """

    def __init__(self, nltk_data: Path) -> None:
        self._function_words = frozenset(FUNCTION_WORDS_FILE.read_text(encoding="utf-8").split())
        self._words: dict[str, set[str]] = {}
        self._irregular: dict[str, dict[str, list[str]]] = {}
        for part in ENDINGS:
            index = (nltk_data / WORDNET / f"index.{part}").read_text(encoding="utf-8").splitlines()
            exceptions = (nltk_data / WORDNET / f"{part}.exc").read_text(encoding="utf-8").splitlines()
            # The lines of the licence start with a space.
            self._words[part] = {line.split(" ", 1)[0] for line in index if not line.startswith(" ")}
            self._irregular[part] = {form: lemmas for form, *lemmas in map(str.split, exceptions) if lemmas}

    def lemma(self, word: str) -> str:
        """The shortest noun lemma of a lower-case word, or the word itself if it has none."""
        return min(self._lemmas(word, "noun"), key=len, default=word)

    def is_word(self, word: str) -> bool:
        """Whether a lower-case word is English: a form of a word in WordNet, or a function word."""
        word = word.removesuffix("'s")
        return word in self._function_words or any(self._lemmas(word, part) for part in ENDINGS)

    def _lemmas(self, word: str, part: str) -> list[str]:
        forms = self._irregular[part].get(word) or [
            word.removesuffix(old) + new for old, new in ENDINGS[part] if word.endswith(old)
        ]
        return [form for form in (word, *forms) if form in self._words[part]]
