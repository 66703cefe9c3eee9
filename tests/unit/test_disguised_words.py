"""Blocked words in disguise: spelled out, backwards, encoded, and all of these at once. Ordinary prompts pass."""

from __future__ import annotations

import html
import random
import string
from collections.abc import Callable
from urllib.parse import quote

import pytest
from better_profanity import Profanity

from cosmos_triton.guardrail.blocklist import Blocklist, Violation
from cosmos_triton.guardrail.readings import MAX_LAYERS, decode
from cosmos_triton.guardrail.spellings import LookAlikes
from support.documents import DOCUMENTS
from support.ordinary_prompts import ordinary_prompts

RNG = random.Random(5)
WORDS = ["".join(RNG.choices("bcdfghjkmnprtvwxz", k=length)) for length in range(4, 24)]  # no vowels: no leetspeak
CUSTOM, EXACT = WORDS[::2], WORDS[1::2]
SEPARATORS = (
    " ",
    ".",
    "-",
    "_",
    "\u200b",
    "\u00ad",
    "\u0301",
    "\n",
    ", ",
    " . ",
    "*",
    "'",
    "\u00b7",
    "\u3000",
    "--",
    "/",
)
SEPARATORS += ("\U0001f916", "\u00a0", "\t", "|", "\u2014")


def blocklist(
    custom: list[str], exact_match: list[str], *, is_word: Callable[[str], bool] = lambda _: False
) -> Blocklist:
    return Blocklist(custom=custom, exact_match=exact_match, whitelist=[], lemmatize=lambda word: word, is_word=is_word)


LISTS = blocklist(CUSTOM, EXACT)


def mixed(word: str) -> str:
    return "".join(letter + RNG.choice(SEPARATORS) for letter in word[:-1]) + word[-1]


def full_width(word: str) -> str:
    return "".join(chr(ord(letter) + 0xFEE0) for letter in word)


ENCODINGS: dict[str, Callable[[str], str]] = {
    "decimal": lambda word: "".join(f"&#{ord(letter)};" for letter in word),
    "hexadecimal": lambda word: "".join(f"&#x{ord(letter):X};" for letter in word),
    "leading zeros": lambda word: "".join(f"&#{ord(letter):09};" for letter in word),
    "without semicolons": lambda word: "".join(f"&#{ord(letter)}" for letter in word),
    "one letter": lambda word: f"{word[0]}&#{ord(word[1])};{word[2:]}",
    "escaped twice": lambda word: html.escape("".join(f"&#{ord(letter)};" for letter in word)),
    "named": lambda word: f"{word[0]}&ZeroWidthSpace;&shy;{word[1:]}",
    "named letters": lambda word: "".join(f"&{letter}scr;" for letter in word),
    "tags": lambda word: "<b>".join(word),
    "URL": lambda word: "".join(f"%{ord(letter):02x}" for letter in word),
    "URL twice": lambda word: quote("".join(f"%{ord(letter):02X}" for letter in word)),
    "URL of entities": lambda word: quote("".join(f"&#{ord(letter)};" for letter in word)),
    "JSON": lambda word: "".join(f"\\u{ord(letter):04x}" for letter in word),
    "Python": lambda word: "".join(f"\\x{ord(letter):02x}" for letter in word),
    "CSS": lambda word: "".join(f"\\{ord(letter):02x} " for letter in word),
    "JavaScript": lambda word: "".join(f"\\u{{{ord(letter):x}}}" for letter in word),
    "URL of JavaScript": lambda word: "".join(f"%u{ord(letter):04x}" for letter in word),
    "full-width": full_width,
    "full-width entities": lambda word: full_width("".join(f"&#{ord(letter)};" for letter in word)),
    "flags": lambda word: "".join(chr(0x1F1E6 + ord(letter) - ord("a")) for letter in word),
    "black circles": lambda word: "".join(chr(0x1F150 + ord(letter) - ord("a")) for letter in word),
    "accents": lambda word: "".join(letter + "\u0323\u0301" for letter in word),
    "backwards": lambda word: word[::-1],
    "shown backwards": lambda word: f"\u202e{word[::-1]}\u202c",
    "spelled out": mixed,
}


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_words_of_any_length_are_found_letter_by_letter(separator: str) -> None:
    for word in WORDS:
        assert not LISTS.judge(f"i saw a {separator.join(word)} b c").safe, word
        assert not LISTS.judge(separator.join(word[::-1])).safe, word


def test_a_word_of_the_longest_length_is_found_letter_by_letter_wherever_tokens_are_cut() -> None:
    """However many tokens a word is spread over, and for words of the custom list wherever the cuts are."""
    for word in WORDS:
        finder = LookAlikes([word])
        for _ in range(20):
            assert finder.found_in("".join(letter + RNG.choice(["", " ", ".", " - "]) for letter in word)), word
        assert not finder.found_in(" ".join(word[:-1]))
        assert not finder.found_in(" ".join(word[1:]))


@pytest.mark.parametrize("inner", ENCODINGS.values(), ids=ENCODINGS)
def test_a_word_is_found_in_every_encoding(inner: Callable[[str], str]) -> None:
    for word in WORDS[::3] + WORDS[1::3]:
        for text in (inner(word), inner(word.upper()) if inner(word).isascii() else inner(word)):
            assert not LISTS.judge(f"one {text} here").safe, text


@pytest.mark.parametrize("outer", ["decimal", "escaped twice", "URL", "JSON", "full-width", "spelled out"])
@pytest.mark.parametrize("inner", ["backwards", "spelled out", "flags", "black circles", "accents"])
def test_a_word_is_found_in_two_encodings_at_once(inner: str, outer: str) -> None:
    for word in CUSTOM:
        text = ENCODINGS[inner](word)
        if text.isascii():  # what letters look like is the outermost layer
            text = ENCODINGS[outer](text) if outer != "full-width" else full_width("".join(filter(str.isalpha, text)))
        assert not LISTS.judge(f"one {text} here").safe, text


@pytest.mark.parametrize(
    "prompt", ["$p3ll3d", "$ p 3 l l 3 d", "d3ll3p$", "d.3.l.l.3.p.$", "$&#112;3ll3d", "%24p3ll3d"]
)
def test_leetspeak_is_read_within_disguises(prompt: str) -> None:
    assert not blocklist(["spelled"], ["quibblex"]).judge(f"it is {prompt} here").safe


def test_phrases_are_found_letter_by_letter_and_backwards() -> None:
    lists = blocklist(["grum blit"], ["dratted hat"])
    for prompt in ("g r u m b l i t", "g-r-u-m b-l-i-t", "tilb murg", "d r a t t e d h a t", "tah dettard"):
        assert not lists.judge(f"i saw {prompt} there").safe, prompt


def test_plurals_are_found_backwards() -> None:
    assert LISTS.violation(f"two {WORDS[4]}s"[::-1]) == Violation.REVERSED


def test_what_a_tag_splits_is_one_word() -> None:
    assert blocklist(["zarn"], ["quibblex"]).violation("a quib<b></b>blex") == Violation.WHOLE_WORD


def test_what_is_english_as_it_stands_is_not_backwards_unless_it_is_shown_backwards() -> None:
    lists = blocklist(["nips"], ["stop"], is_word=lambda word: word in ("spin", "pots", "a", "and"))
    assert lists.judge("a spin, and POTS").safe
    assert lists.violation("a nipz and xpotz") is None
    assert lists.violation("a \u202espin") == Violation.CUSTOM
    assert lists.violation("a &#8238;spin&#8236; and") == Violation.CUSTOM
    assert blocklist(["nips"], ["stop"]).violation("a spin") == Violation.REVERSED


@pytest.mark.parametrize("prompt", ["\u0437zarn", "z\u0430arn", "zarn\u0435", "z\u0430\u0440\u043e arn"])
def test_a_prompt_is_read_without_its_characters_outside_ascii_too(prompt: str) -> None:
    """As by a model that drops them: looks alone would hide these."""
    assert blocklist(["zarn"], ["quibblex"]).violation(prompt) == Violation.CUSTOM


def test_the_last_letter_may_be_missing_as_any_other() -> None:
    lists = blocklist(["zarn"], EXACT)
    for entry in EXACT:
        for i in range(len(entry)):
            assert not lists.judge(f"a {entry[:i]}{entry[i + 1 :]} runs").safe, (entry, i)


def test_a_word_is_found_under_as_many_layers_as_are_read() -> None:
    text = "zarn"
    for _ in range(3):
        text = "".join(f"%{ord(letter):02x}" for letter in text)
        assert blocklist(["zarn"], ["quibblex"]).violation(text) == Violation.CUSTOM


def test_a_prompt_in_too_many_encodings_has_not_passed() -> None:
    text = "robot"
    for _ in range(MAX_LAYERS - 1):
        text = "".join(f"%{ord(letter):02x}" for letter in text)
        assert LISTS.judge(text).safe
    text = html.escape(html.escape(text.replace("%", "&percnt;")))
    assert LISTS.violation(text) == Violation.ENCODED


def test_entities_of_any_size_are_decoded() -> None:
    for prompt in (
        "&#" + "1" * 10_000 + ";",
        "&#xFFFFFFFFFF;",
        "\\U99999999",
        "U+110000",
        "%",
        "%zz",
        "&",
        "&#;",
        "&#x;",
        "\\",
    ):
        assert LISTS.judge(f"a {prompt} b").safe
    assert decode("&#0;&#xD800;\\ud800 x").endswith("x")


def test_random_signs_are_judged() -> None:
    for _ in range(300):
        LISTS.judge("".join(RNG.choices("&#%;x\\u<>{}0123aez \u202e\u200b\ud800" + string.punctuation, k=60)))


NEW = (Violation.SPELLED_OUT, Violation.REVERSED, Violation.ENCODED)


def test_ordinary_prompts_pass_a_real_list() -> None:
    """With no dictionary at all, so that nothing is excused as English."""
    listed = list(map(str, Profanity().CENSOR_WORDSET))
    lists = blocklist(listed, ["quibblex"])
    prompts = ordinary_prompts()
    assert len(prompts) >= 200
    assert [prompt for prompt in prompts if not lists.judge(prompt).safe] == []
    for document in DOCUMENTS:
        for paragraph in filter(str.strip, document.read_text().split("\n\n")):
            # Some English words are listed ones backwards, which a dictionary excuses.
            assert lists.violation(paragraph) not in {*NEW} - {Violation.REVERSED}, paragraph


def test_figures_and_initials_are_not_spelled_out_words() -> None:
    lists = blocklist(["lool"], ["ab", "usb", "boot"])
    for prompt in ("1 0 0 1", "plan a, b or c", "1 0 0 7", "a b c d"):
        assert lists.violation(prompt) not in NEW, prompt
    assert lists.violation("a u.s.b. stick") == Violation.SPELLED_OUT
    assert lists.violation("one u.s.b. stick") == Violation.SPELLED_OUT
