"""The readings of a prompt: the texts that a person, a browser or a model may take it for. All of them are judged."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import groupby
from urllib.parse import unquote

from cosmos_triton.guardrail.spellings import fold, to_ascii, visible

MAX_LAYERS = 4  # of encodings inside each other; nobody writes so by accident

_RIGHT_TO_LEFT = "\u202e"  # shows what follows backwards, up to the end of the line or the mark below
_OVERRIDE = re.compile(f"{_RIGHT_TO_LEFT}([^\u202c\u2029\n]*)")
_TAG = re.compile(r"<[a-zA-Z/!?][^<>]*>")
# Escapes of Python, JSON, JavaScript and CSS, and the notation of Unicode itself.
_CODE_POINT = re.compile(
    r"""\\U([0-9a-f]{8}) | [\\%]u([0-9a-f]{4}) | \\x([0-9a-f]{2}) | \\[ux]\{([0-9a-f]{1,6})\}
    | U\+([0-9a-f]{4,6}) | \\([0-9a-f]{2,6})[ ]?""".replace("a-f", "a-fA-F"),
    re.VERBOSE,
)
_NUMBER = re.compile(r"&#0*(\d+)")
_LETTERS = re.compile(r"[a-z0-9@$]+")


class TooManyLayersError(ValueError):
    """A prompt in more than MAX_LAYERS encodings: what it says in the end is not known."""


def readings(prompt: str) -> Iterator[str]:
    """The readings of a prompt in ASCII: as it is without other characters, as it looks, and decoded.

    Raises:
        TooManyLayersError: at the end.
    """
    yield to_ascii(prompt)
    if not prompt.isascii():
        yield fold(prompt)
    text = prompt
    for _ in range(MAX_LAYERS):
        if _RIGHT_TO_LEFT in text:
            yield fold(_OVERRIDE.sub(lambda match: match[1][::-1], text))
        seen = visible(text)
        text = decode(seen)
        if text == seen:
            return
        yield fold(text)
    raise TooManyLayersError(f"more than {MAX_LAYERS} encodings inside each other")


def decode(text: str) -> str:
    """`text` with one layer of URL encoding, escapes and HTML undone. Tags are taken out."""
    text = _CODE_POINT.sub(_character, unquote(text))
    return _TAG.sub("", html.unescape(_NUMBER.sub(_short_number, text)))


def _short_number(entity: re.Match[str]) -> str:
    """Without leading zeros. Beyond every character it is nothing: Python refuses to convert thousands of digits."""
    return f"&#{entity[1]}" if len(entity[1]) < 8 else " "


def spelled_out(text: str) -> Iterator[list[str]]:
    """Runs of three or more single characters in lower-case ASCII text, whatever separates them.

    A run has a letter: figures alone are figures.
    """
    for is_single, tokens in groupby(_LETTERS.findall(text), key=lambda token: len(token) == 1):
        run = list(tokens) if is_single else []
        if len(run) > 2 and any(map(str.isalpha, run)):
            yield run


def _character(escape: re.Match[str]) -> str:
    number = int(escape[escape.lastindex or 0], 16)
    return chr(number) if number <= 0x10FFFF else " "
