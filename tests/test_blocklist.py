"""The word lists, where they depart from the reference: its defects are not repeated."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import nltk
import pytest
from better_profanity import Profanity
from nltk.stem import WordNetLemmatizer as NLTKLemmatizer

from cosmos_triton.guardrail.blocklist import CENSORED, Blocklist, Violation
from cosmos_triton.guardrail.lemmas import WORDNET, WordNetLemmatizer


def blocklist(**lists: Any) -> Blocklist:
    defaults = {"custom": ["zarn"], "whitelist": [], "exact_match": ["quibblex"], "lemmatize": lambda word: word}
    return Blocklist(**(defaults | lists))


@pytest.mark.parametrize("prompt", ["*", "2 * 3 is 6", "a **bold** move", "****"])
def test_an_asterisk_is_no_censored_word(prompt: str) -> None:
    assert blocklist().judge(prompt).safe


def test_blank_lines_of_a_list_are_no_words() -> None:
    lists = blocklist(custom=["zarn", "", "  "], whitelist=["", "\n"], exact_match=["", " ", "quibblex"])
    assert lists.judge("a robot moves along").safe
    assert not lists.judge("a zarn moves along").safe


def test_a_whitelisted_token_does_not_shift_what_stands_behind_a_censored_phrase() -> None:
    lists = blocklist(custom=["grum blit", "zarn"], whitelist=["zarn-free", "robot"])
    assert lists.judge("a zarn-free robot").safe
    assert lists.judge("Zarn-Free!").safe
    assert lists.violation("a grum blit robot") == Violation.CUSTOM
    assert lists.violation("some grum blit and a zarn-free robot") == Violation.CUSTOM
    assert lists.violation("a zarn-free zarn") == Violation.CUSTOM


def test_a_whitelisted_word_does_not_excuse_a_phrase_it_is_part_of() -> None:
    assert blocklist(custom=["grum blit"], whitelist=["grum"]).violation("some grum blit") == Violation.CUSTOM


def test_lemmas_are_held_against_the_custom_list() -> None:
    lists = blocklist(lemmatize=lambda word: {"zarnen": "zarn"}.get(word, word))
    assert lists.violation("two ZARNEN, waiting") == Violation.CUSTOM
    assert lists.judge("two zarners, waiting").safe


def test_a_lemmatizer_that_fails_blocks() -> None:
    def broken(_: str) -> str:
        raise LookupError

    verdict = blocklist(lemmatize=broken).judge("a robot moves along")
    assert not verdict.safe
    assert "LookupError" in verdict.reason


def test_an_empty_custom_list_is_empty_and_not_the_librarys_own() -> None:
    own = str(Profanity().CENSOR_WORDSET[0])
    assert blocklist(custom=[]).judge(f"a {own} robot").safe


def test_marks_are_those_of_the_library_for_every_spelling() -> None:
    """The index of look-alikes must find what a comparison with every word finds."""
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioustlvbcd", k=rng.randint(3, 7))) for _ in range(300)]
    words += [f"{words[i]} {words[i + 1]}" for i in range(0, 60, 2)]
    lists, library = blocklist(custom=words), Profanity()
    library.load_censor_words(words)
    censored = 0
    for _ in range(60):
        tokens = rng.choices(words, k=4) + ["".join(rng.choices("aeioustlvbcd", k=5)) for _ in range(4)]
        rng.shuffle(tokens)
        letters = [rng.choice(library.CHARS_MAPPING.get(letter, letter)) for letter in " ".join(tokens)]
        prompt = "".join(letter + " " * (rng.random() < 0.02) for letter in letters)
        expected = library.censor(prompt, CENSORED)
        assert lists.mark(prompt) == expected
        censored += CENSORED in expected
    assert censored == 60


def test_lists_are_all_lines_of_all_files(tmp_path: Path) -> None:
    for name, text in {"custom/a.txt": "Zarn\n\n", "custom/b": "grum  blit", "exact_match/c": "quibblex\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    write_wordnet(tmp_path / WORDNET)
    lists = Blocklist.from_folder(tmp_path, tmp_path)
    for prompt in ("a zarn", "the grum blit", "quibblex"):
        assert not lists.judge(prompt).safe
    assert lists.judge("a robot moves along").safe

    (tmp_path / "exact_match/c").write_text("\n")
    with pytest.raises(ValueError, match="exact_match"):
        Blocklist.from_folder(tmp_path, tmp_path)


NOUNS = ("dog", "church", "glass", "wolf", "woman", "lady", "box", "axe", "axis", "species", "u", "s", "mens")
IRREGULAR = {"axes": "axis axe", "wolves": "wolf", "oxen": "ox", "women": "woman", "data": "datum"}


def write_wordnet(folder: Path) -> None:
    folder.mkdir(parents=True)
    for part in ("noun", "verb", "adj", "adv"):
        for name in (f"index.{part}", f"data.{part}", f"{part}.exc"):
            (folder / name).write_text("")
    for name in ("lexnames", "index.sense"):
        (folder / name).write_text("")
    lines = ["  1 This line stands for the licence.", *(f"{noun} n 1 0 1 0 00000000" for noun in NOUNS)]
    (folder / "index.noun").write_text("\n".join(lines) + "\n")
    (folder / "noun.exc").write_text("".join(f"{form} {lemmas}\n" for form, lemmas in IRREGULAR.items()))


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_lemmas_are_nltks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wordnet(tmp_path / WORDNET)
    lemmatize = WordNetLemmatizer(tmp_path)
    # NLTK keeps what it has loaded; a reader of its own sees this folder only.
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    reader = WordNetCorpusReader(nltk.data.find(WORDNET.as_posix()), None)
    monkeypatch.setattr(nltk.corpus, "wordnet", reader)
    words = {*IRREGULAR, *(noun + ending for noun in NOUNS for ending in ("", "s", "es", "ies", "men", "ses"))}
    words |= {"ladies", "churches", "boxes", "glasses", "robot", "robots", "men", ""}
    assert {word: lemmatize(word) for word in words} == {word: NLTKLemmatizer().lemmatize(word) for word in words}
    assert lemmatize("glasses") == "glass"
