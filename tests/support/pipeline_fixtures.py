"""Tiny checkpoints and servers that all tests of a run share."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_triton.cli.main import main
from cosmos_triton.runtime.stages import GRAPHS
from support.held_server import HeldServer
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
    server = PipelineServer("tiny", checkpoints, tmp_path_factory.mktemp("tiny")).start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def video2world(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeldServer]:
    server = HeldServer("tiny-video2world", checkpoints, tmp_path_factory.mktemp("tiny-video2world"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def exported(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second tree of the same files, with every graph for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(checkpoints, folder, copy_function=os.link, dirs_exist_ok=True, symlinks=True)
    command = ["export", "onnx", "--deployment", "tiny-video2world", "--checkpoint-dir", str(folder)]
    for stage in GRAPHS:  # in this process, which has imported what takes longer than the export
        assert main([*command, "--stage", stage]) == 0
    return folder
