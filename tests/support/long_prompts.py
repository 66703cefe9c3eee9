"""Prompts as long as they may be, of all kinds."""

from __future__ import annotations

import random
import string


def long_prompts() -> dict[str, str]:
    """Of 100 KB each."""
    rng = random.Random(3)
    letters = "etaoinshrdlucmfwyp"

    def words(shortest: int, longest: int) -> str:
        return " ".join("".join(rng.choices(letters, k=rng.randint(shortest, longest))) for _ in range(60_000))

    patterns = ["@", "'", '"a ', "1,", "a-", ".", "\x00\x01", "\n", "A" * 50 + " "]
    prompts = {repr(pattern[:9]): pattern * 100_000 for pattern in patterns}
    prompts |= {"words": words(4, 9), "letters": words(1, 1), "pairs": words(2, 2)}
    prompts["signs"] = "".join(rng.choices(string.printable, k=100_000))
    prompts["Cyrillic"] = "".join(rng.choices("\u0430\u0435\u043e\u0440\u0441\u0445 ", k=100_000))
    prompts["ligatures"], prompts["zero width"] = "\ufdfa" * 33_000, "z\u200b" * 25_000
    return {name: prompt.encode()[:100_000].decode(errors="ignore") for name, prompt in prompts.items()}


def long_encoded_prompts() -> dict[str, str]:
    """Of 100 KB each, of what is decoded before it is judged."""
    patterns = ("%41", "&#97;", "&amp;", "\\u0061", "<a", "<b>", "\u202ea")
    prompts = {pattern: (pattern * 100_000)[:100_000] for pattern in patterns}
    return prompts | {"a number": "&#" + "1" * 100_000}
