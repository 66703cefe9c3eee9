"""What of Dockerfile.triton can be tested without building it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest

from cosmos_triton.cli.main import main
from cosmos_triton.serving.ports import free_ports
from support.paths import ROOT
from support.pipeline_server import PipelineServer

DOCKERFILE = (ROOT / "Dockerfile.triton").read_text()
PORT = ":8000/"


def instruction(name: str) -> list[str]:
    """The JSON form of the last instruction of that name."""
    found = re.findall(rf"^{name}\b[^\[]*(\[.*\])$", DOCKERFILE, re.MULTILINE)
    return json.loads(found[-1])


def health(port: int) -> int:
    command = instruction("HEALTHCHECK")
    assert command[0] == "python"
    assert PORT in command[-1]
    command = [sys.executable, *command[1:-1], command[-1].replace(PORT, f":{port}/")]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode


def test_healthcheck_tells_a_ready_server_from_none(base: PipelineServer) -> None:
    assert health(base.http_port) == 0
    assert health(*free_ports(1)) != 0


def test_entry_point_is_a_command_that_looks_for_mounted_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    program, *arguments = instruction("ENTRYPOINT")
    assert program == "cosmos-triton"
    assert main([*arguments, "--deployment", "tiny"]) == 1
    assert capsys.readouterr().err == "/checkpoints: no such folder\n"


def test_context_has_every_package_and_nothing_that_is_not_installed() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rooms = {"cosmos_triton", *(link.name for link in (ROOT / "cosmos_triton").iterdir() if link.is_symlink())}
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert allowed == rooms | {"constraints.txt", "LICENSE", "pyproject.toml", project["project"]["readme"]}
    assert all((ROOT / name).exists() for name in allowed)


def test_extras_and_interpreter_are_ones_that_there_are() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    versions = set(re.findall(r"python(3\.\d+)", DOCKERFILE))
    assert versions == {"3.12"}, "the stub runs one version of Python, that of the base image"
    assert re.search(r"^ARG TRITON=nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3$", DOCKERFILE, re.MULTILINE)
