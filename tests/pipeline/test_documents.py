"""What README.md and docs/ tell a reader to run against a server is run against one."""

from __future__ import annotations

import json
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from cosmos_triton.cli.main import main
from cosmos_triton.tiny.sample_media import NOON, draw, encode_jpeg
from support.documents import Block, blocks, commands
from support.pipeline_server import CLIP, PipelineServer

CALLS = ("generate", "base", "video2world")


def calls() -> list[tuple[str, ...]]:
    """The commands that call a server."""
    return [words for words in commands() if words[0] == "cosmos-triton" and words[1] in CALLS]


def scripts() -> list[Block]:
    return [block for block in blocks("bash") if block.is_script]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's: with the files that the examples read."""
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    (tmp_path / "room.jpg").write_bytes(encode_jpeg(draw(0.0, NOON)))
    (tmp_path / "batch.jsonl").write_text(json.dumps({"visual_input": "clip.mp4", "prompt": "A street."}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_is_mp4(path: Path) -> None:
    assert path.read_bytes()[4:8] == b"ftyp"


def test_every_way_to_call_a_server_is_shown() -> None:
    """Or the tests below would have nothing to run."""
    assert {words[1] for words in calls()} == set(CALLS)
    assert scripts()
    snippets = [block.text for block in blocks("python")]
    for client in ("WorldClient", "tritonclient"):
        assert any(client in snippet for snippet in snippets), client


@pytest.mark.parametrize("words", calls(), ids=shlex.join)
def test_a_command_makes_a_video(words: tuple[str, ...], folder: Path, request: pytest.FixtureRequest) -> None:
    takes_text = "--prompt" in words or words[1] == "video2world"
    server = request.getfixturevalue("video2world" if takes_text else "base")
    assert main([*words[1:], "--url", server.grpc_url]) == 0
    [video] = set(folder.glob("**/*.mp4")) - {folder / "clip.mp4"}
    assert_is_mp4(video)
    for option, file in pairwise(words):
        if option in ("--output", "--report"):
            assert (folder / file).stat().st_size


@pytest.mark.parametrize("block", scripts(), ids=str)
def test_a_curl_example_makes_a_video(block: Block, folder: Path, base: PipelineServer) -> None:
    text = block.text.replace("localhost:8000", base.url)
    result = subprocess.run(["bash", "-euo", "pipefail"], input=text, text=True, capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert_is_mp4(folder / "world.mp4")


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_a_python_example_makes_a_video(block: Block, folder: Path, base: PipelineServer) -> None:
    source = block.text.replace("localhost:8001", base.grpc_url).replace("localhost:8000", base.url)
    exec(compile(source, str(block), "exec"), {})
    assert_is_mp4(folder / "world.mp4")
