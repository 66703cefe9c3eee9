"""The tiny tree of each release has the same files under that release's names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cosmos_triton.cli.main import main
from cosmos_triton.runtime.releases import COSMOS_1_0, PREDICT1
from cosmos_triton.tiny import checkpoint_tree, guardrails
from support.released_tree import rename_to_predict1


def test_tiny_trees_differ_in_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slowest files are left empty: tracing and the face detector are the same for both."""
    monkeypatch.setattr(checkpoint_tree, "_write_script", lambda path, *_: _touch(path))
    monkeypatch.setattr(guardrails, "write_face_detector", lambda path, **_: _touch(path))
    contents = []
    for release in (COSMOS_1_0, PREDICT1):
        directory = tmp_path / release.name
        with torch.random.fork_rng():
            assert main(["checkpoints", "tiny", str(directory), "--release", release.name]) == 0
        if release == COSMOS_1_0:
            rename_to_predict1(directory, guardrails=PREDICT1.guardrails)
        contents.append({path.relative_to(directory): path.read_bytes() for path in files(directory)})
    assert contents[0].keys() == contents[1].keys()
    differing = {path.name for path in contents[0] if contents[0][path] != contents[1][path]}
    assert differing <= {"pytorch_model.bin"}, "the old format has no fixed order"


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
