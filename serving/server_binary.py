"""Finds tritonserver, and prepares its environment so that its Python models run on this interpreter.

`python -m cosmos_triton.serving.server_binary` installs the server into the environment: it is unpacked from a wheel,
outside of site-packages, so that the wheel's requirements do not apply.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cosmos_triton.runtime.errors import CosmosError

WHEEL, VERSION = "nvidia-pytriton", "0.7.0"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LOADER_FAILED = 127  # exit code of a program whose shared libraries are not found


class ServerBinaryError(CosmosError):
    """tritonserver is missing or cannot run this interpreter."""


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A tritonserver in the layout of its releases: bin/, backends/ and caches/ under one `root`."""

    root: Path

    @property
    def executable(self) -> Path:
        return self.root / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        return self.root / "backends"

    @property
    def caches(self) -> Path:
        return self.root / "caches"

    @property
    def python_stub(self) -> Path:
        """The program that runs a Python model."""
        return self.backends / "python" / "triton_python_backend_stub"

    def environment(self, libraries: Path) -> dict[str, str]:
        """The environment variables with which Python models run on this interpreter.

        The stub runs the first `python3` on PATH and needs that interpreter's libpython. LD_LIBRARY_PATH gets the
        folder `libraries`, with a link to libpython only. The folder of libpython itself may be the system's library
        folder, from which torch would load another cuDNN than the one it was built with; attention then silently falls
        back to a kernel that takes 1.8 times as long.

        Args:
            libraries: a folder of this server; it is created and must exist while the server runs.

        Raises:
            ServerBinaryError: the stub is for another Python, or there is no libpython.
        """
        found = re.search(rb"libpython(3\.\d+)\.so", self.python_stub.read_bytes())
        if found and found[1].decode() != PYTHON:
            raise ServerBinaryError(
                f"{self.python_stub}: runs Python {found[1].decode()}, and this is {PYTHON}: "
                "run this command with the server's own version"
            )
        environment = dict(os.environ)
        environment["PATH"] = _first(Path(sys.executable).parent, environment.get("PATH"))
        if libpython := _libpython():
            libraries.mkdir(parents=True, exist_ok=True)
            link = libraries / libpython.name
            link.unlink(missing_ok=True)  # of an earlier server in this run directory
            link.symlink_to(libpython)
            environment["LD_LIBRARY_PATH"] = _first(libraries, environment.get("LD_LIBRARY_PATH"))
        # Without arguments it prints its usage and exits, after the loader has resolved its shared libraries.
        trial = subprocess.run([self.python_stub], env=environment, capture_output=True, text=True)
        if trial.returncode == LOADER_FAILED:
            missing = trial.stderr.strip().rpartition("shared libraries: ")[2]
            raise ServerBinaryError(
                f"{self.python_stub}: {missing}; on Debian and Ubuntu: apt-get install libpython{PYTHON}"
            )
        return environment


def _first(folder: Path, paths: str | None) -> str:
    return os.pathsep.join([str(folder), *([paths] if paths else [])])


def _libpython() -> Path | None:
    """The shared library of this interpreter; None where there is none in its folders, and the loader has to search."""
    for folder in (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix, "lib")):
        if folder and (library := Path(folder, f"libpython{PYTHON}.so.1.0")).exists():
            return library
    return None


def installed_root() -> Path:
    """Where `install` puts the server: one in each environment."""
    return Path(sys.prefix, "tritonserver", "pytriton", "tritonserver")


def find(explicit: Path | None = None) -> ServerBinary:
    """The server to use: the explicit executable, else the one on PATH, else the installed one.

    Raises:
        ServerBinaryError: there is none.
    """
    if explicit:
        if not os.access(explicit, os.X_OK) or explicit.is_dir():
            raise ServerBinaryError(f"--tritonserver: value {explicit}; accepted: the path of an executable")
        return _of(explicit)
    if on_path := shutil.which("tritonserver"):
        return _of(Path(on_path))
    installed = ServerBinary(installed_root())
    if not installed.executable.exists():
        raise ServerBinaryError(
            f"tritonserver: not on PATH, nor at {installed.executable}; "
            f"`make setup` or `{sys.executable} -m {__spec__.name}` installs it, or give --tritonserver PATH"
        )
    return installed


def _of(executable: Path) -> ServerBinary:
    binary = ServerBinary(executable.resolve().parent.parent)
    if not binary.python_stub.exists():
        raise ServerBinaryError(f"{executable}: has no Python backend: {binary.python_stub} does not exist")
    return binary


def install() -> ServerBinary:
    """Unpack the server and copy this Python's stub into it. Does nothing where it is installed."""
    binary = ServerBinary(installed_root())
    tree = Path(sys.prefix, "tritonserver")
    if (tree / f"{WHEEL.replace('-', '_')}-{VERSION}.dist-info").exists():
        return binary
    with tempfile.TemporaryDirectory(prefix=".tritonserver-", dir=sys.prefix) as scratch:
        unpacked = Path(scratch, "tree")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        if subprocess.run([*pip, "--target", unpacked, f"{WHEEL}=={VERSION}"]).returncode:
            raise ServerBinaryError(f"{WHEEL}=={VERSION}: pip could not install it")
        root = unpacked / "pytriton" / "tritonserver"
        stub = root / "python_backend_stubs" / PYTHON / binary.python_stub.name
        if not stub.exists():
            raise ServerBinaryError(f"{WHEEL}=={VERSION}: runs no models on Python {PYTHON}; use Python 3.11")
        shutil.copy2(stub, root / "backends" / "python")
        shutil.rmtree(tree, ignore_errors=True)  # another version
        unpacked.rename(tree)
    return binary


if __name__ == "__main__":
    try:
        print(install().executable)
    except ServerBinaryError as error:
        sys.exit(str(error))
