"""The word lists, where they depart from the reference: its defects are not repeated."""

from __future__ import annotations

import random
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import nltk
import pytest
from better_profanity import Profanity
from nltk.stem import WordNetLemmatizer as NLTKLemmatizer

from cosmos_triton.guardrail.blocklist import Blocklist, NearMatches, Violation
from cosmos_triton.guardrail.lemmas import FILES, WORDNET, WordNet
from cosmos_triton.guardrail.spellings import LookAlikes
from cosmos_triton.runtime.releases import COSMOS_1_0, PREDICT1

CENSORED = "\ue000"


WORDS = ("robot", "quibbled", "like", "dratted", "mat", "cat", "the", "a")


def blocklist(**lists: Any) -> Blocklist:
    defaults = {"custom": ["zarn"], "whitelist": [], "exact_match": ["quibblex"]}
    defaults |= {"lemmatize": lambda word: word, "is_word": lambda word: word in WORDS}
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


def test_an_empty_custom_list_is_empty_and_not_the_librarys_own() -> None:
    own = str(Profanity().CENSOR_WORDSET[0])
    assert blocklist(custom=[]).judge(f"a {own} robot").safe


def test_words_are_found_where_the_library_finds_them_in_every_spelling() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioustlvbcd", k=rng.randint(3, 7))) for _ in range(300)]
    words += [f"{words[i]} {words[i + 1]}" for i in range(0, 60, 2)]
    finder, library = LookAlikes(words), Profanity()
    library.load_censor_words(words)
    found = 0
    for _ in range(300):
        tokens = ["".join(rng.choices("aeioustlvbcd", k=rng.randint(2, 6))) for _ in range(8)]
        tokens += rng.choices(words, k=rng.randint(0, 1))
        rng.shuffle(tokens)
        letters = [rng.choice(library.CHARS_MAPPING.get(letter, letter)) for letter in " ".join(tokens)]
        prompt = "".join(letter + rng.choice(" .-") * (rng.random() < 0.1) for letter in letters) + " the end"
        expected = CENSORED in library.censor(prompt, CENSORED)
        assert finder.found_in(prompt) == expected, prompt  # no word has as many letters as the library joins tokens
        found += expected
    assert 50 < found < 250


@pytest.mark.parametrize("prompt", ["zarn", "ZaRn", "z4rn", "z@rn!", "z a r n", "see z.a.r.n", "a z-a-r-n"])
def test_a_word_at_the_end_is_found_as_anywhere(prompt: str) -> None:
    assert blocklist().violation(prompt) == Violation.CUSTOM
    assert blocklist(custom=["z"]).violation("z") == Violation.CUSTOM


@pytest.mark.parametrize(
    "prompt",
    [
        "quibblx",  # missing
        "a uibblex runs",
        "a qu1bblex",  # exchanged
        "the quibblez, there",
        "quibbelx!",  # swapped
        "the dratted hta",
        "the dratte hat",
    ],
)
def test_a_letter_missing_exchanged_or_swapped_is_no_way_around(prompt: str) -> None:
    assert blocklist(exact_match=["quibblex", "dratted hat"]).violation(prompt) == Violation.MISSPELT


@pytest.mark.parametrize("prompt", ["quibbled", "the dratted mat", "dratted Cat.", "quibbl", "xquibblexx", "quib blex"])
def test_an_english_word_is_no_misspelt_blocked_one(prompt: str) -> None:
    assert blocklist(exact_match=["quibblex", "dratted hat"]).violation(prompt) is None


def test_a_whitelisted_name_is_no_misspelt_blocked_word() -> None:
    assert blocklist(exact_match=["quibblex"]).violation("Mr Quibbley") == Violation.MISSPELT
    assert blocklist(exact_match=["quibblex"], whitelist=["quibbley"]).violation("Mr Quibbley,") is None


def test_one_letter_too_many_is_what_the_references_similarity_says() -> None:
    rng = random.Random(2)
    entry_letters, seen = "abcd", 0
    for _ in range(4000):
        entry, window = ("".join(rng.choices(entry_letters, k=rng.randint(4, 6))) for _ in range(2))
        if rng.random() < 0.5:
            place = rng.randint(0, len(entry))
            window = entry[:place] + rng.choice(entry_letters) + entry[place:]
        similar = SequenceMatcher(None, window, entry).ratio() >= (len(entry) - 0.5) / len(entry)
        found = NearMatches([entry]).with_inserted_letter([window]) == {entry}
        assert found or not similar or window == entry, (window, entry)
        seen += similar
    assert seen > 1000


@pytest.mark.parametrize(
    ("prompt", "violation"),
    [
        ("a z\u0430rn", Violation.CUSTOM),  # Cyrillic
        ("\uff3a\uff21\uff32\uff2e", Violation.CUSTOM),  # full width
        ("\U0001d433\U0001d41a\U0001d42b\U0001d427", Violation.CUSTOM),  # mathematical bold
        ("\u1d22\u1d00\u0280\u0274", Violation.CUSTOM),  # small capitals
        ("z\u0304a\u0323rn\u0301", Violation.CUSTOM),  # accents
        ("za\u200brn za\u00adrn", Violation.CUSTOM),  # zero width, soft hyphen
        ("quib\u200d\u2060blex", Violation.WHOLE_WORD),
        ("QU\u0406BBL\u0415X", Violation.WHOLE_WORD),
        ("\u00e9l\u00e8ve na\u00efve \u673a\u5668\u4eba \u0440\u043e\u0431\u043e\u0442", None),
    ],
)
def test_look_alike_letters_and_invisible_ones_hide_nothing(prompt: str, violation: Violation | None) -> None:
    assert blocklist().violation(prompt) == violation


def test_lists_are_all_lines_of_all_files(tmp_path: Path) -> None:
    for name, text in {"custom/a.txt": "Zarn\n\n", "custom/b": "grum  blit", "exact_match/c": "quibblex\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    write_wordnet(tmp_path)
    lists = Blocklist.from_folder(tmp_path, tmp_path)
    for prompt in ("a zarn", "the grum blit", "quibblex"):
        assert not lists.judge(prompt).safe
    assert lists.judge("a robot moves along").safe

    (tmp_path / "exact_match/c").write_text("\n")
    with pytest.raises(ValueError, match="exact_match"):
        Blocklist.from_folder(tmp_path, tmp_path)


NOUNS = ("dog", "church", "glass", "wolf", "woman", "lady", "box", "axe", "axis", "species", "u", "s", "mens")
IRREGULAR = {"axes": "axis axe", "wolves": "wolf", "oxen": "ox", "women": "woman", "data": "datum"}


VERBS = ("run", "move", "carry", "pass")


def write_wordnet(nltk_data: Path) -> None:
    folder = nltk_data / WORDNET
    folder.mkdir(parents=True)
    for file in FILES:
        (nltk_data / file).write_text("")
    for name in ("lexnames", "index.sense", *(f"data.{part}" for part in ("noun", "verb", "adj", "adv"))):
        (folder / name).write_text("")
    lines = ["  1 This line stands for the licence.", *(f"{noun} n 1 0 1 0 00000000" for noun in NOUNS)]
    (folder / "index.noun").write_text("\n".join(lines) + "\n")
    (folder / "noun.exc").write_text("".join(f"{form} {lemmas}\n" for form, lemmas in IRREGULAR.items()))
    (folder / "index.verb").write_text("".join(f"{verb} v 1 0 1 0 00000000\n" for verb in VERBS))
    (folder / "verb.exc").write_text("ran run\nrunning run\n")
    (folder / "index.adj").write_text("large a 1 0 1 0 00000000\n")
    (folder / "index.adv").write_text("slowly r 1 0 1 0 00000000\n")


def test_words_are_english_in_all_their_forms(tmp_path: Path) -> None:
    write_wordnet(tmp_path)
    is_word = WordNet(tmp_path).is_word
    forms = "dogs dog's women ran running runs moved moving carries passes larger largest slowly whose with"
    for word in forms.split():
        assert is_word(word), word
    for word in ("dogz", "", "largerer", "1", "slowlys", "licence"):
        assert not is_word(word), word


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_wordnet_that_lacks_a_file_is_none(tmp_path: Path, file: Path) -> None:
    write_wordnet(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=file.name):
        WordNet(tmp_path)


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_lemmas_are_nltks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wordnet(tmp_path)
    wordnet = WordNet(tmp_path)
    # NLTK keeps what it has loaded; a reader of its own sees this folder only.
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    reader = WordNetCorpusReader(nltk.data.find(WORDNET.as_posix()), None)
    monkeypatch.setattr(nltk.corpus, "wordnet", reader)
    words = {*IRREGULAR, *(noun + ending for noun in NOUNS for ending in ("", "s", "es", "ies", "men", "ses"))}
    words |= {"ladies", "churches", "boxes", "glasses", "robot", "robots", "men", ""}
    assert {word: wordnet.lemma(word) for word in words} == {word: NLTKLemmatizer().lemmatize(word) for word in words}
    assert wordnet.lemma("glasses") == "glass"


def test_what_predict1_matches_exactly_is_only_taken_for_a_misspelling() -> None:
    """Its reference finds no entry with a letter too many, and no near match of fewer than 6 letters."""
    entries = ["quibblex", "zibbe"]
    old, new = (
        blocklist(
            exact_match=entries,
            near_match_min_chars=release.near_match_min_chars,
            near_match_letters=release.near_match_letters,
        )
        for release in (COSMOS_1_0, PREDICT1)
    )
    for lists in (old, new):
        assert lists.violation("a quibblex.") == lists.violation("a zibbe") == Violation.WHOLE_WORD
    assert old.violation("a quibblexy") == old.violation("a zibbey") == Violation.NEAR_MATCH
    assert new.violation("a quibblexy") == new.violation("a quibblexy.") == Violation.MISSPELT
    assert new.judge("a zibbey").safe
