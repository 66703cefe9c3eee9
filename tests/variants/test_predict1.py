"""Predict1, from a hub to a video; and the same clip, seed and tokens through both releases' samplers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from cosmos_triton.cli.main import main
from cosmos_triton.client import Event
from cosmos_triton.export.checkpoints.catalogue import AEGIS, LLAMA_GUARD, SIGLIP, T5
from cosmos_triton.export.checkpoints.hub_repositories import GUARDRAIL_FILES
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.releases import COSMOS_1_0, PREDICT1, Release
from support.hub_server import TOKEN, HubRepository, HubServer
from support.pipeline_server import PipelineServer

DEPLOYMENT = DEPLOYMENTS["tiny-video2world"]
COMMIT = "a" * 40


def repositories(checkpoints: Path) -> dict[str, HubRepository]:
    """The released files of a tree of Cosmos-1.0, in the repositories of Predict1: they are of the same form."""
    guardrails = checkpoints / COSMOS_1_0.guardrails
    [siglip] = guardrails.glob("video_content_safety_filter/models--*/snapshots/*")
    [aegis] = guardrails.glob("aegis/models--*/snapshots/*")
    folders = {T5: checkpoints / T5, LLAMA_GUARD: checkpoints / LLAMA_GUARD, SIGLIP: siglip, AEGIS: aegis}
    for old, new in zip(model_folders(COSMOS_1_0), model_folders(PREDICT1), strict=True):
        folders[f"nvidia/{new}"] = checkpoints / old
    contents = {name: files_of(folder, "*") for name, folder in folders.items()}
    contents[f"nvidia/{DEPLOYMENT.of(PREDICT1).ar_folder}"] |= {
        f"guardrail/{file}": content
        for pattern in GUARDRAIL_FILES
        for file, content in files_of(guardrails, pattern.replace("/*", "/**/*")).items()
    }
    return {name: HubRepository({COMMIT: files}) for name, files in contents.items()}


def model_folders(release: Release) -> list[str]:
    own = [release.discrete_tokenizer, release.continuous_tokenizer, release.diffusion_decoder]
    return [DEPLOYMENT.of(release).ar_folder, *own]


def files_of(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob(pattern) if path.is_file()}


@pytest.fixture(scope="module")
def downloaded(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of Predict1, downloaded and converted."""
    directory, hub = tmp_path_factory.mktemp("predict1"), HubServer()
    hub.hub.repositories = repositories(checkpoints)
    code = "import sys; from cosmos_triton.cli.main import main; sys.exit(main(sys.argv[1:]))"
    options = [f"--deployment={DEPLOYMENT.name}", "--release=predict1", f"--to={directory}"]
    command = [sys.executable, "-c", code, "checkpoints", "download", *options]
    try:
        subprocess.run(command, env=os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}, check=True)
    finally:
        hub.close()
    assert main(["checkpoints", "convert", str(directory)]) == 0
    assert main(["checkpoints", "verify", str(directory), f"--deployment={DEPLOYMENT.name}"]) == 0
    return directory


@pytest.fixture(scope="module")
def predict1(downloaded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineServer]:
    server = PipelineServer(DEPLOYMENT.name, downloaded, tmp_path_factory.mktemp("server")).start()
    try:
        yield server
    finally:
        server.close()


def test_both_samplers_make_a_video_of_the_same_tokens(predict1: PipelineServer, video2world: PipelineServer) -> None:
    reports, videos = [], []
    for server, release in ((video2world, COSMOS_1_0), (predict1, PREDICT1)):
        events: list[Event] = []
        generation = server.generate(seed=5, on_event=events.append)
        assert {event.total for event in events if event.stage == "diffusion_decoder"} == {release.evaluations}
        assert (generation.report["release"], generation.report["sampler"]) == (release.name, release.sampler)
        reports.append(generation.report)
        videos.append(frames_of(generation.video))
    assert reports[0]["tokens_sha256"] == reports[1]["tokens_sha256"]
    for video in videos:
        assert video.shape == (33, 160, 256, 3)
        assert video.std() > 1
    assert not np.array_equal(*videos)


def test_a_video_without_the_diffusion_decoder_names_no_sampler(predict1: PipelineServer) -> None:
    report = predict1.generate(disable_diffusion_decoder=True).report
    assert (report["release"], report["sampler"]) == ("predict1", None)


def frames_of(video: bytes) -> np.ndarray:
    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
