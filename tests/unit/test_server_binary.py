"""Which tritonserver is used, and what is said when none can be."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_triton.serving import server_binary
from cosmos_triton.serving.server_binary import PYTHON, ServerBinary, ServerBinaryError


def make_release(root: Path, *, stub: str = "#!/bin/sh\nexit 1\n") -> ServerBinary:
    """What a release looks like from outside."""
    binary = ServerBinary(root)
    for path, text in ((binary.executable, "#!/bin/sh\n"), (binary.python_stub, stub)):
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    return binary


def test_explicit_server_comes_before_the_one_on_path_before_the_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explicit, on_path, installed = (make_release(tmp_path / name) for name in ("explicit", "on_path", "installed"))
    monkeypatch.setattr(server_binary, "installed_root", lambda: installed.root)
    monkeypatch.setenv("PATH", str(on_path.executable.parent))
    assert server_binary.find(explicit.executable) == explicit
    assert server_binary.find() == on_path
    monkeypatch.setenv("PATH", "")
    assert server_binary.find() == installed


def test_server_on_path_may_be_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = make_release(tmp_path / "opt")
    (tmp_path / "tritonserver").symlink_to(release.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_binary.find() == release


def test_missing_server_is_answered_with_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_binary, "installed_root", lambda: tmp_path / "nowhere")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerBinaryError, match=r"nowhere.*make setup.*serving\.server_binary.*--triton"):
        server_binary.find()
    with pytest.raises(ServerBinaryError, match=r"--tritonserver: value .*absent; accepted: the path of an executable"):
        server_binary.find(tmp_path / "absent")


def test_server_without_python_backend_is_refused(tmp_path: Path) -> None:
    release = make_release(tmp_path)
    shutil.rmtree(release.backends)
    with pytest.raises(ServerBinaryError, match="has no Python backend"):
        server_binary.find(release.executable)


def test_stub_for_another_python_is_refused(tmp_path: Path) -> None:
    release = make_release(tmp_path, stub="#!/bin/sh\n# libpython3.8.so.1.0\n")
    with pytest.raises(ServerBinaryError, match=rf"runs Python 3\.8, and this is {PYTHON}"):
        release.environment(tmp_path / "lib")


def test_missing_libpython_is_answered_with_its_package(tmp_path: Path) -> None:
    release = make_release(
        tmp_path, stub="#!/bin/sh\necho while loading shared libraries: libx.so: gone >&2\nexit 127\n"
    )
    with pytest.raises(ServerBinaryError, match=rf": libx.so: gone; .*apt-get install libpython{PYTHON}"):
        release.environment(tmp_path / "lib")


def test_models_run_on_the_interpreter_that_runs_serve(tmp_path: Path) -> None:
    environment = server_binary.find().environment(tmp_path / "lib")
    python = shutil.which("python3", path=environment["PATH"])
    assert python
    prefix = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True).stdout
    assert prefix.strip() == sys.prefix


@pytest.mark.parametrize("where", ["LIBDIR", "base_prefix"])
def test_stages_find_libpython_and_none_of_the_libraries_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The folder that libpython is in may be the system's, with a cuDNN that is not the one torch was built with."""
    system, libraries = tmp_path / "lib", tmp_path / "run"
    system.mkdir()
    for name in (f"libpython{PYTHON}.so.1.0", "libcudnn.so.9"):
        (system / name).touch()
    folder_of_libpython = system if where == "LIBDIR" else None
    monkeypatch.setattr(server_binary.sysconfig, "get_config_var", lambda _: folder_of_libpython)
    monkeypatch.setattr(server_binary.sys, "base_prefix", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/given")
    release = make_release(tmp_path / "release")
    for _ in range(2):  # a run directory is used again
        environment = release.environment(libraries)
    assert environment["LD_LIBRARY_PATH"] == f"{libraries}:/given"
    assert [path.name for path in libraries.iterdir()] == [f"libpython{PYTHON}.so.1.0"]
    assert next(libraries.iterdir()).resolve().parent == system


def test_installing_again_changes_nothing() -> None:
    before = server_binary.installed_root().stat()
    assert server_binary.install().executable.exists()
    assert server_binary.installed_root().stat() == before
