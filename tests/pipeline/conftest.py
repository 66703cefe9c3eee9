from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cosmos_triton.cli.main import main
from cosmos_triton.runtime.stages import GRAPHS
from support.pipeline_server import PipelineServer


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tree, made and converted; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, the form of some released files
        for step in ("tiny", "convert"):
            assert main(["checkpoints", step, str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def base(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineServer]:
    yield from running("tiny", checkpoints, tmp_path_factory)


@pytest.fixture(scope="session")
def video2world(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineServer]:
    yield from running("tiny-video2world", checkpoints, tmp_path_factory)


@pytest.fixture(scope="session")
def exported(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second tree of the same files, with every graph for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(checkpoints, folder, copy_function=os.link, dirs_exist_ok=True, symlinks=True)
    program = Path(sys.executable).with_name("cosmos-triton")
    command = [program, "export", "onnx", "--deployment", "tiny-video2world", "--checkpoint-dir", folder]
    with ThreadPoolExecutor(2) as pool:  # a process each: torch's exporter is Python, on one core
        runs = pool.map(lambda stage: subprocess.run([*command, "--stage", stage]), reversed(GRAPHS))
        assert [run.returncode for run in runs] == [0] * len(GRAPHS)
    return folder


def running(deployment: str, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineServer]:
    server = PipelineServer(deployment, checkpoints, tmp_path_factory.mktemp(deployment)).start()
    try:
        yield server
    finally:
        server.close()
