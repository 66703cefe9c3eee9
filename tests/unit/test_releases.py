"""Which release a checkpoint directory is of."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmos_triton.cli.commands import release_of
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.diffusion.sampler import SAMPLERS
from cosmos_triton.runtime.releases import COSMOS_1_0, PREDICT1, RELEASES, Release


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ([], COSMOS_1_0),
        (["google-t5"], COSMOS_1_0),
        (["Cosmos-1.0-Guardrail"], COSMOS_1_0),
        (["Cosmos-Predict1-12B"], PREDICT1),
        (["Cosmos-Predict1-tiny-Video2World", "google-t5"], PREDICT1),
        (["Cosmos-Tokenize1-CV8x8x8-720p"], PREDICT1),
        (["Cosmos-Predict1-12B", "Cosmos-1.0-Autoregressive-4B"], COSMOS_1_0),
    ],
)
def test_the_only_release_of_a_directory_is_taken_and_else_the_first(
    tmp_path: Path, folders: list[str], expected: Release
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir()
    assert release_of(tmp_path) == expected
    assert release_of(tmp_path, "predict1") == PREDICT1


def test_a_directory_that_does_not_exist_is_of_the_first_release(tmp_path: Path) -> None:
    assert release_of(tmp_path / "nowhere") == COSMOS_1_0


def test_folders_are_called_like_the_repositories() -> None:
    folders = {name: DEPLOYMENTS[name].of(PREDICT1).ar_folder for name in ("4b", "12b", "5b-video2world")}
    assert folders == {
        "4b": "Cosmos-Predict1-4B",
        "12b": "Cosmos-Predict1-12B",
        "5b-video2world": "Cosmos-Predict1-5B-Video2World",
    }


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
def test_the_plan_counts_as_many_evaluations_as_the_sampler_makes(release: Release) -> None:
    assert SAMPLERS[release.sampler]().evaluations == release.evaluations
