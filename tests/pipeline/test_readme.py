"""What README.md tells a reader to type: every command is at least parsed by the program that it calls, and what calls
a server is run against one.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from cosmos_triton.cli.main import main
from cosmos_triton.tiny.sample_media import NOON, draw, encode_jpeg
from support.paths import ROOT
from support.pipeline_server import CLIP, PipelineServer

ELSEWHERE = ("apt-get", "docker", "git")  # programs that need another machine


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences; `line` is the first one's number in the file."""

    language: str
    text: str
    line: int


def blocks(language: str) -> list[Block]:
    text = (ROOT / "README.md").read_text()
    fenced = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    found = [Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in fenced]
    return [block for block in found if block.language == language]


def scripts() -> list[Block]:
    """Blocks that only make sense as a whole."""
    return [block for block in blocks("bash") if "curl" in block.text]


def commands() -> list[list[str]]:
    """Those of the other blocks, a line each, in words."""
    text = "".join(block.text for block in blocks("bash") if block not in scripts())
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def generate_commands() -> list[list[str]]:
    return [words for words in commands() if words[:2] == ["cosmos-triton", "generate"]]


class Parsed(Exception):
    """A command line was understood."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command ends where it has parsed its arguments."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, args: Sequence[str] | None = None, namespace: Any = None) -> None:
        parse_args(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's: with the files that the examples read."""
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    (tmp_path / "room.jpg").write_bytes(encode_jpeg(draw(0.0, NOON)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_script(script: str, server: PipelineServer) -> None:
    text = script.replace("localhost:8000", server.url)
    result = subprocess.run(["bash", "-euo", "pipefail"], input=text, text=True, capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr


def assert_is_mp4(path: Path) -> None:
    assert path.read_bytes()[4:8] == b"ftyp"


def test_every_way_to_call_a_server_is_shown() -> None:
    """Or the tests below would have nothing to run."""
    assert generate_commands()
    assert scripts()
    snippets = [block.text for block in blocks("python")]
    for client in ("WorldClient", "tritonclient"):
        assert any(client in snippet for snippet in snippets), client


@pytest.mark.parametrize("words", commands(), ids=shlex.join)
def test_a_command_is_understood(words: list[str], parse_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    match words:
        case ["make", target]:
            assert f"\n{target}:" in (ROOT / "Makefile").read_text()
        case ["cosmos-triton", *arguments]:
            with pytest.raises(Parsed):
                main(arguments)
        case ["python", "-m", "pytest", *paths]:
            assert all((ROOT / path).exists() for path in paths)
        case ["python", script, *arguments]:
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            monkeypatch.syspath_prepend(ROOT / "benchmarks")
            with pytest.raises(Parsed):
                runpy.run_path(str(ROOT / script), run_name="__main__")
        case ["pip", "install", requirement]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            wanted = Requirement(requirement)
            assert wanted.name == project["name"]
            assert wanted.extras <= set(project["optional-dependencies"])
        case [program, *_]:
            assert program in ELSEWHERE, f"{shlex.join(words)}: nothing checks this command"


@pytest.mark.parametrize("words", generate_commands(), ids=shlex.join)
def test_a_generate_command_makes_a_video(words: list[str], folder: Path, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("video2world" if "--prompt" in words else "base")
    assert main([*words[1:], "--url", server.grpc_url]) == 0
    [video] = set(folder.glob("**/*.mp4")) - {folder / "clip.mp4"}
    assert_is_mp4(video)
    for option, file in pairwise(words):
        if option in ("--output", "--report"):
            assert (folder / file).stat().st_size


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("block", scripts(), ids=lambda block: f"line {block.line}")
def test_a_curl_example_makes_a_video(block: Block, folder: Path, base: PipelineServer) -> None:
    run_script(block.text, base)
    assert_is_mp4(folder / "world.mp4")


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"line {block.line}")
def test_a_python_example_makes_a_video(block: Block, folder: Path, base: PipelineServer) -> None:
    source = block.text.replace("localhost:8001", base.grpc_url).replace("localhost:8000", base.url)
    exec(compile(source, f"README.md, line {block.line}", "exec"), {})
    assert_is_mp4(folder / "world.mp4")
