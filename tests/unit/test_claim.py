"""What a server holds on this host goes when its owner does, and nothing of another one goes with it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_triton.runtime.processes import is_alive
from cosmos_triton.serving import claim as claims
from cosmos_triton.serving.claim import Claim, claimed, reclaim, start_reaper
from support.server import until

IGNORES_SIGTERM = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
MAPS = """
import mmap, sys, time
file = open(sys.argv[1], "r+b")
mapped = mmap.mmap(file.fileno(), 0)
print("mapped", flush=True)
time.sleep(600)
"""
OWNER = """
import subprocess, sys, time
from pathlib import Path
from cosmos_triton.serving import claim
claim.SHARED_MEMORY = Path(sys.argv[1])
own = claim.Claim.make()
stage = subprocess.Popen([sys.executable, "-c", sys.argv[2]], env=own.server_environment)
(claim.SHARED_MEMORY / f"{own.prefix}region").touch()
print(own.name, stage.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in its place, so that servers of other tests are left alone."""
    monkeypatch.setattr(claims, "SHARED_MEMORY", tmp_path)
    return tmp_path


@pytest.fixture
def abandoned(shared_memory: Path) -> Iterator[tuple[Claim, int]]:
    """A claim whose owner was killed, and a process of it that lives on."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, shared_memory, IGNORES_SIGTERM], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout
    name, stage = owner.stdout.readline().split()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    yield Claim(name), int(stage)
    if is_alive(int(stage)):
        os.kill(int(stage), signal.SIGKILL)


def test_reclaim_removes_processes_regions_and_folder_of_a_dead_owner(
    abandoned: tuple[Claim, int], shared_memory: Path
) -> None:
    claim, stage = abandoned
    assert is_alive(stage)
    assert claim.regions()
    os.kill(stage, signal.SIGSTOP)
    assert reclaim() == [claim.name]
    assert not is_alive(stage)
    assert list(shared_memory.iterdir()) == []


def test_reclaim_spares_what_a_living_owner_holds(shared_memory: Path) -> None:
    with claimed() as claim:
        region = shared_memory / f"{claim.prefix}region"
        region.touch()
        stage = subprocess.Popen([sys.executable, "-c", IGNORES_SIGTERM], env=claim.server_environment)
        assert reclaim() == []
        assert region.exists()
        assert stage.poll() is None
    assert stage.wait(10) == -signal.SIGKILL
    assert list(shared_memory.iterdir()) == []


def test_clear_leaves_claim_and_companions(shared_memory: Path) -> None:
    with claimed() as claim:
        stage, companion = (
            subprocess.Popen([sys.executable, "-c", IGNORES_SIGTERM], env=environment)
            for environment in (claim.server_environment, claim.environment)
        )
        claim.heartbeats.file(stage.pid).touch()
        (shared_memory / f"{claim.prefix}region").touch()
        claim.clear()
        assert stage.wait(10) == -signal.SIGKILL
        assert companion.poll() is None
        assert claim.regions() == []
        assert claim.heartbeats.last(stage.pid) is None
    assert companion.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(("age", "is_left"), [(3600, False), (1, True)])
def test_regions_of_earlier_versions_go_by_their_age(shared_memory: Path, age: float, is_left: bool) -> None:
    region, other = shared_memory / f"cosmos_triton_{'0' * 16}_region", shared_memory / "somebody_elses"
    for path in (region, other):
        path.touch()
        changed = path.stat().st_mtime - age
        os.utime(path, (changed, changed))
    assert reclaim() == []
    assert region.exists() is is_left
    assert other.exists()


def test_region_of_an_earlier_version_that_is_in_use_is_left() -> None:
    """In shared memory itself, since a process's mappings name it."""
    region = Path("/dev/shm") / f"cosmos_triton_{secrets.token_hex(8)}_region"
    region.write_bytes(bytes(4096))
    user = subprocess.Popen([sys.executable, "-c", MAPS, region], stdout=subprocess.PIPE)
    try:
        assert user.stdout
        user.stdout.readline()
        assert region.name in claims._mapped_names()
    finally:
        user.kill()
        user.communicate()
        region.unlink()


def test_reaper_removes_the_claim_once_its_pipe_ends(shared_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the real place: the reaper is a program of its own."""
    monkeypatch.setattr(claims, "SHARED_MEMORY", Path("/dev/shm"))
    temporary = shared_memory / "run"
    temporary.mkdir()
    claim = Claim.make()
    claim.own(temporary)
    stage = subprocess.Popen([sys.executable, "-c", IGNORES_SIGTERM], env=claim.server_environment)
    reaper = start_reaper(claim)
    assert claim.folder.exists()
    assert reaper.stdin
    reaper.stdin.close()
    assert stage.wait(15) == -signal.SIGKILL
    until(lambda: not claim.folder.exists(), seconds=10)
    reaper.wait(10)
    assert not temporary.exists()


@pytest.mark.parametrize("name", ["a b", "it's", "$HOME", "`ls`", "é", "a;b", "a\nb", 'a"b', "(a)", "a&b", "*"])
def test_path_that_a_shell_or_an_ascii_locale_would_change_is_replaced_by_a_link(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "file").touch()
    with claimed() as claim:
        plain = claim.plain_path(folder, "run")
        assert plain.is_relative_to(claim.folder)
        assert (plain / "file").exists()
    assert (folder / "file").exists()


def test_plain_path_stays(tmp_path: Path) -> None:
    with claimed() as claim:
        assert claim.plain_path(tmp_path, "run") == tmp_path


def test_claim_is_closed_to_other_users() -> None:
    with claimed() as claim:
        assert claim.folder.stat().st_mode & 0o777 == 0o700
