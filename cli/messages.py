"""Messages on the screen: one line each, on any terminal."""

from __future__ import annotations

import io
import sys

_MAX_CHARACTERS = 2000


def accept_any_character() -> None:
    """From now on what stdout and stderr cannot encode is printed as an escape, instead of raising an exception."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def one_line(message: object) -> str:
    """The message with escapes for line breaks, control characters and lone surrogates, and without the middle of a
    very long one. File names and a server's texts may have all of these.
    """
    text = str(message)
    if len(text) > _MAX_CHARACTERS:
        text = f"{text[: _MAX_CHARACTERS // 2]} ... {text[-_MAX_CHARACTERS // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_problem(message: object) -> None:
    """On stderr."""
    print(one_line(message), file=sys.stderr)
