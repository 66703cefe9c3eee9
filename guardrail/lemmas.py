"""Dictionary forms of English nouns, by WordNet's own rules over two of its files (man page morphy(7WN)).

The same lemmas as NLTK's WordNetLemmatizer gives. NLTK's reader is not used: it loads all of WordNet, and refuses
files outside its global search path or with a second link.
"""

from __future__ import annotations

from pathlib import Path

WORDNET = Path("corpora", "wordnet")  # inside an NLTK data folder

# What an ending of a plural is replaced with.
ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)


class WordNetLemmatizer:
    """The shortest noun that a lower-case word is a form of, or the word itself if it is none.

    Raises:
        FileNotFoundError: the folder holds no WordNet.
    """

    def __init__(self, nltk_data: Path) -> None:
        folder = nltk_data / WORDNET
        index = (folder / "index.noun").read_text(encoding="utf-8").splitlines()
        irregular = (folder / "noun.exc").read_text(encoding="utf-8").splitlines()
        self._nouns = {line.split(" ", 1)[0] for line in index if not line.startswith(" ")}  # that is the licence
        self._irregular = {form: lemmas for form, *lemmas in map(str.split, irregular)}

    def __call__(self, word: str) -> str:
        forms = self._irregular.get(word) or [
            word.removesuffix(old) + new for old, new in ENDINGS if word.endswith(old)
        ]
        return min((form for form in (word, *forms) if form in self._nouns), key=len, default=word)
