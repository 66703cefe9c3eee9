"""README.md and docs/: every command is understood by the program that it calls, every link leads somewhere, and the
tables have the numbers of the code. What calls a server is run in tests/pipeline/test_documents.py.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from cosmos_triton.cli.main import main
from cosmos_triton.planning.memory_plan import plan_memory
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from support.documents import DOCUMENTS, commands
from support.paths import ROOT

ELSEWHERE = ("apt-get", "docker", "git")  # programs that need another machine
LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]*))?\)")
PATH = re.compile(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|json|txt))[`:]")
RELEASED = [name for name, deployment in DEPLOYMENTS.items() if not deployment.is_tiny]


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


@pytest.mark.parametrize("words", commands(), ids=shlex.join)
def test_a_command_is_understood(words: tuple[str, ...], parse_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    match words:
        case ("make", target):
            assert f"\n{target}:" in (ROOT / "Makefile").read_text()
        case ("cosmos-triton", *arguments):
            with pytest.raises(Parsed):
                main(arguments)
        case ("python", "-m", "pytest", *paths):
            assert paths
            assert [path for path in paths if not (ROOT / path).exists()] == []
        case ("python", script, *arguments):
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            monkeypatch.syspath_prepend(ROOT / "benchmarks")
            with pytest.raises(Parsed):
                runpy.run_path(str(ROOT / script), run_name="__main__")
        case ("pip", "install", requirement):
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            wanted = Requirement(requirement)
            assert wanted.name == project["name"]
            assert wanted.extras <= set(project["optional-dependencies"])
        case (program, *_):
            assert program.partition("=")[0].isupper() or program in ELSEWHERE, (
                f"{shlex.join(words)}: nothing checks this command"
            )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for path, heading in LINK.findall(document.read_text()):
        if path.startswith("https://"):
            continue
        target = document.parent / path if path else document
        assert target.exists(), path
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in {text.lower().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    for name in PATH.findall(document.read_text()):
        assert (ROOT / name).exists(), name


def test_readme_is_short_and_names_every_document() -> None:
    readme = ROOT / "README.md"
    assert readme.stat().st_size <= 8000
    linked = set(re.findall(r"\(docs/([\w-]+\.md)\)", readme.read_text()))
    assert linked == {path.name for path in DOCUMENTS if path != readme}


def hardware_row(budget: int, *, weights_8bit: bool) -> str:
    cells = [f"{budget} GB, 8-bit weights" if weights_8bit else f"{budget} GB"]
    for deployment in RELEASED:
        plan = plan_memory(DEPLOYMENTS[deployment], budget, weights_8bit=weights_8bit)
        ar = next(stage for stage in plan.stages if stage.stage == "ar_sampler")
        clips = f"{ar.slots} clip{'s' if ar.slots > 1 else ''} in flight"
        layers = f"{ar.streamed_blocks} AR layers streamed"
        cells.append({"resident": clips, "offloaded": "AR weights offloaded", "streamed": layers}[ar.mode])
    return f"| {' | '.join(cells)} |"


def test_hardware_table_is_what_the_plan_says() -> None:
    rows = [(80, False), (48, False), (24, False), (24, True), (16, False), (12, False)]
    head = f"| GPU memory | {' | '.join(f'`{name}`' for name in RELEASED)} |"
    table = "\n".join([head, "|---" * 5 + "|", *(hardware_row(budget, weights_8bit=short) for budget, short in rows)])
    assert table in (ROOT / "README.md").read_text(), table
