from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline.pipeline_server import PipelineServer

from cosmos_triton.client.cli import main


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


def running(deployment: str, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineServer]:
    server = PipelineServer(deployment, checkpoints, tmp_path_factory.mktemp(deployment)).start()
    try:
        yield server
    finally:
        server.close()
