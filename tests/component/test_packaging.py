"""What an installation holds: the wheel, also one built from the sdist, has every file of the rooms, once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from support.paths import ROOT

IGNORED = shutil.ignore_patterns("__pycache__")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build sees: the packages and what is said of them, without what an earlier build left behind."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "cosmos_triton", folder / "cosmos_triton", symlinks=True)
    for link in (ROOT / "cosmos_triton").iterdir():
        if link.is_symlink():
            shutil.copytree(link.resolve(), folder / link.name, ignore=IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def build(kind: str, source: Path, target: Path) -> Path:
    """By the backend itself, as pip would call it; nothing is fetched."""
    call = f"import sys, setuptools.build_meta as backend; print(backend.build_{kind}(sys.argv[1]))"
    run = subprocess.run([sys.executable, "-c", call, target], cwd=source, capture_output=True, text=True, check=True)
    return target / run.stdout.split()[-1]


def test_wheel_holds_every_file_of_the_rooms(source: Path, tmp_path: Path) -> None:
    sdist = build("sdist", source, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    expected = {str(Path("cosmos_triton", path.relative_to(source))) for path in files_of_rooms(source)}
    expected |= {"cosmos_triton/__init__.py"}
    for tree in (source, unpacked):
        with zipfile.ZipFile(build("wheel", tree, tmp_path)) as wheel:
            names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        assert sorted(names) == sorted(expected)


def files_of_rooms(source: Path) -> list[Path]:
    rooms = [link.name for link in (source / "cosmos_triton").iterdir() if link.is_symlink()]
    return [path for room in rooms for path in (source / room).rglob("*") if path.is_file()]
