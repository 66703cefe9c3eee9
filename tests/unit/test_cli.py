"""The command line itself: its help, its errors, and what it needs installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_triton.cli.main import main
from cosmos_triton.runtime.releases import COSMOS_1_0, PREDICT1
from cosmos_triton.tiny import checkpoint_tree as tiny

STEPS = [("checkpoints", step) for step in ("tiny", "download", "convert", "verify")]
STEPS += [("export", kind) for kind in ("onnx", "tensorrt")]


@pytest.mark.parametrize("step", STEPS, ids=" ".join)
def test_every_step_has_help_with_an_example_that_parses(
    step: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*step, "--help"])
    example = re.search(r"example: cosmos-triton (.*)", capsys.readouterr().out)
    assert example
    with pytest.raises(SystemExit, match="0"):
        main([*example[1].split(), "--help"])


def test_tiny_passes_directory_release_and_seed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    monkeypatch.setattr(tiny, "write_tiny_tree", lambda *args, seed: calls.append((*args, seed)))
    assert main(["checkpoints", "tiny", str(tmp_path), "--seed", "7", "--release", "predict1"]) == 0
    assert main(["checkpoints", "tiny", str(tmp_path)]) == 0
    assert calls == [(tmp_path, PREDICT1, 7), (tmp_path, COSMOS_1_0, 0)]


def test_without_the_server_packages_the_command_says_what_to_install(tmp_path: Path) -> None:
    """As on a laptop that installed the client alone."""
    no_torch = "import sys; sys.modules['torch'] = None; from cosmos_triton.cli.main import main"
    command = [sys.executable, "-c", f"{no_torch}; sys.exit(main(sys.argv[1:]))", "checkpoints", "convert", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.endswith("needs the server packages: pip install 'cosmos-triton[server]'\n")
    assert "Traceback" not in result.stderr


def test_missing_checkpoints_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--deployment", "tiny", "--checkpoint-dir", str(tmp_path / "absent")]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert str(tmp_path / "absent") in output.err
    assert output.err.count("\n") == 1
