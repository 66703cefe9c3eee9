"""Whose requests a stage works on, and what of a job's id anybody gets to see."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cosmos_triton.pipeline.errors import Cancelled
from cosmos_triton.pipeline.job_files import JOB, JobFiles, Progress, label, new_job_id
from cosmos_triton.runtime.errors import InvalidValue

ID = "0123456789abcdef" * 2
NO_IDS = [
    "",
    ID[:-1],
    f"{ID}0",
    f"{ID}\n",
    ID.upper(),
    ID[:-1] + "g",
    ID[:-1] + "\u0661",  # a digit, of another script
    "..",
    "../models",
    f"../jobs/{ID}",
    f"./{ID}",
    f"{ID}/",
    "0" * 31 + "/",
    "\0" * 32,
    "\ud800" * 32,
    "a" * 100_000,
]


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    """Every name of NO_IDS that can be one is a file, beside the jobs or in their folder."""
    jobs = JobFiles(tmp_path / "jobs")
    jobs.folder.mkdir()
    (tmp_path / "models").touch()
    for name in NO_IDS:
        if "/" not in name and 0 < len(name) < 200 and "\0" not in name and name.isascii() and name != "..":
            (jobs.folder / name).touch()
    return jobs


def test_a_job_lives_from_its_beginning_to_its_end(files: JobFiles) -> None:
    job = new_job_id()
    with pytest.raises(InvalidValue):
        files.of({JOB: job})
    files.begin(job)
    assert files.of({JOB: job, "another": 1}) == job
    files.end(job)
    files.end(job)
    with pytest.raises(InvalidValue):
        files.of({JOB: job})
    with pytest.raises(Cancelled):
        files.report(job, "ar_sampler", 1, 5)
    assert files.progress(job) is None
    assert not files.is_wanted(job)


@pytest.mark.parametrize("job", NO_IDS, ids=lambda job: ascii(job[:40]))
def test_only_32_hexadecimal_digits_become_a_path(files: JobFiles, job: str) -> None:
    before = sorted(files.folder.iterdir())
    with pytest.raises(InvalidValue, match=r"^job: value an id with the hash [0-9a-f]{12}; accepted: "):
        files.of({JOB: job})
    for use in (files.begin, files.end, files.is_wanted, files.progress):
        with pytest.raises(ValueError, match="32 hexadecimal digits"):
            use(job)
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        files.report(job, "ar_sampler", 1, 5)
    assert sorted(files.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("parameters", "value"),
    [
        ({}, "none"),
        ({JOB: None}, "none"),
        ({JOB: 5}, "of type int"),
        ({JOB: True}, "of type bool"),
        ({JOB: [ID]}, ""),
    ],
)
def test_a_request_without_an_id_is_told_so(files: JobFiles, parameters: dict[str, Any], value: str) -> None:
    files.begin(ID)
    with pytest.raises(InvalidValue, match=rf"^job: value {value}.*; accepted: .*world_generation"):
        files.of(parameters)


def test_ids_are_random_and_only_their_hash_is_shown(files: JobFiles) -> None:
    ids = {new_job_id() for _ in range(100)}
    assert len(ids) == 100
    for job in ids:
        files.begin(job)  # is one
        files.end(job)
        with pytest.raises(InvalidValue) as caught:
            files.of({JOB: job})
        shown = str(caught.value)
        assert label(job) in shown
        assert not any(job[i : i + 8] in shown for i in range(25))


def test_progress_is_that_of_the_last_report(files: JobFiles) -> None:
    files.begin(ID)
    assert files.progress(ID) is None
    for done in (3, 12, 4):
        files.report(ID, "diffusion_decoder", done, 12)
        assert files.progress(ID) == Progress("diffusion_decoder", done, 12, os.getpid())
    assert json.loads((files.folder / ID).read_text())["done"] == 4
