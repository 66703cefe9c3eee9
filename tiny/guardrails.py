"""The guardrails' part of a tiny checkpoint directory, in the released layouts.

Each guardrail has a trigger, and passes anything ordinary:

- blocklist: a prompt with BLOCKED_WORD, also spelled bl0ckedw0rd, or with EXACT_WORD, also with one letter inserted
- Aegis: a prompt with DANGER_WORD
- content filter: the frame `unsafe_frame(height, width)`, a checkerboard of yellow and blue
- face blur: a face drawn by `draw_test_face(frame, y, x, size)`, 24 to 96 pixels large
"""

from __future__ import annotations

from pathlib import Path

from cosmos_triton.export.checkpoints.catalogue import AEGIS, LLAMA_GUARD, SIGLIP
from cosmos_triton.guardrail.lemmas import FILES, WORDNET
from cosmos_triton.runtime.releases import COSMOS_1_0, Release
from cosmos_triton.tiny.face_detector import draw_test_face, write_face_detector
from cosmos_triton.tiny.llama_guard import TRIGGER as DANGER_WORD
from cosmos_triton.tiny.llama_guard import write_adapter, write_llama_guard
from cosmos_triton.tiny.siglip import unsafe_frame, write_classifier, write_siglip

__all__ = [
    "BLOCKED_WORD",
    "DANGER_WORD",
    "EXACT_WORD",
    "draw_test_face",
    "unsafe_frame",
    "write_guardrails",
]

BLOCKED_WORD = "blockedword"
IRREGULAR_PLURAL = "blockedwordren"
EXACT_WORD = "exactword"
WORD_LISTS = {
    "custom": (BLOCKED_WORD, "blocked phrase"),
    "whitelist": (f"{BLOCKED_WORD}-free",),
    "exact_match": (EXACT_WORD, "exact phrase"),
}
REVISION = "0123456789abcdef0123456789abcdef01234567"  # of the snapshots in the hub caches


def write_guardrails(directory: Path, release: Release = COSMOS_1_0, *, seed: int = 0) -> None:
    """Write the guardrails' files, as they are after a download."""
    guardrail = directory / release.guardrails
    _write_word_lists(guardrail / "blocklist")
    _write_wordnet(guardrail / "blocklist" / "nltk_data")
    write_llama_guard(directory / LLAMA_GUARD, seed=seed)
    write_adapter(_snapshot(guardrail / "aegis", AEGIS), seed=seed)
    write_siglip(_snapshot(guardrail / "video_content_safety_filter", SIGLIP))
    write_classifier(guardrail / "video_content_safety_filter" / "safety_filter.pt")
    write_face_detector(guardrail / "face_blur_filter" / "Resnet50_Final.pth", seed=seed)


def _snapshot(folder: Path, repository: str) -> Path:
    """The folder of the repository's main branch in a hub cache in `folder`."""
    cache = folder / f"models--{repository.replace('/', '--')}"
    (cache / "refs").mkdir(parents=True, exist_ok=True)
    (cache / "refs" / "main").write_text(REVISION)
    return cache / "snapshots" / REVISION


def _write_word_lists(folder: Path) -> None:
    for name, words in WORD_LISTS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "words.txt").write_text("\n".join(words) + "\n")


def _write_wordnet(nltk_data: Path) -> None:
    """The files of WordNet that the blocklist reads, with one noun and its irregular plural."""
    for file in FILES:
        (nltk_data / file).parent.mkdir(parents=True, exist_ok=True)
        (nltk_data / file).touch()
    folder = nltk_data / WORDNET
    (folder / "index.noun").write_text(f"{BLOCKED_WORD} n 1 0 1 0 00000000\n")
    (folder / "noun.exc").write_text(f"{IRREGULAR_PLURAL} {BLOCKED_WORD}\n")
