"""What one `serve` holds on this host, and how it goes away whatever becomes of it.

A claim is a name. The processes of a server carry it in their environment, its regions of shared memory have it in
front of their names, and its folder, in shared memory too, holds what goes with it. A lock says whether the owner
lives: the kernel opens it when that process ends, in other containers as well. So whoever finds a claim unlocked may
remove all of it, and nothing of a living server.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cosmos_triton.runtime.heartbeat import FOLDER_VARIABLE, Heartbeats
from cosmos_triton.runtime.processes import PROC, all_pids
from cosmos_triton.serving.processes import kill_marked

SHARED_MEMORY = Path("/dev/shm")
VARIABLE = "COSMOS_TRITON_CLAIM"
PREFIX = "cosmos_triton_"
NAME = re.compile(rf"{PREFIX}([0-9a-f]{{16}})_")
FOLDER = "claim"  # behind the prefix of a claim
PLAIN = re.compile(r"[A-Za-z0-9_./+,@-]*")
TEMPORARY = "temporary"  # in the folder: a link to a folder that goes with the claim
KILL_SECONDS = 5.0  # for killed processes to end
UNCLAIMED_SECONDS = 60.0  # age of a region without a claim, from which on nobody is about to open it


class Claim:
    """The claim `name`; `make` makes one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.prefix = f"{PREFIX}{name}_"
        self.folder = SHARED_MEMORY / f"{self.prefix}{FOLDER}"
        self._lock: int | None = None

    @classmethod
    def make(cls) -> Claim:
        """A new one, locked by this process."""
        claim = cls(secrets.token_hex(8))
        # Made under another name: without a lock it would be anybody's to remove.
        unlocked = SHARED_MEMORY / f".{claim.prefix}{FOLDER}"
        unlocked.mkdir(mode=0o700)
        claim._lock = os.open(unlocked, os.O_RDONLY)
        fcntl.flock(claim._lock, fcntl.LOCK_EX)
        (unlocked / claim.heartbeats.folder.name).mkdir(mode=0o700)
        unlocked.rename(claim.folder)
        return claim

    @property
    def heartbeats(self) -> Heartbeats:
        return Heartbeats(self.folder / "heartbeats")

    @property
    def environment(self) -> dict[str, str]:
        """Variables that every process of the claim is started with."""
        return {VARIABLE: self.name}

    @property
    def server_environment(self) -> dict[str, str]:
        """Variables that the server is started with, and so its stages are."""
        return {**self.environment, FOLDER_VARIABLE: str(self.heartbeats.folder)}

    def plain_path(self, path: Path, name: str) -> Path:
        """The same place under a path that is safe in a shell's command and in any locale: the server starts its stages
        by a shell, in which they read paths as ASCII. `path` itself, or a link of that `name` to it.
        """
        if PLAIN.fullmatch(str(path)):
            return path
        link = self.folder / name
        link.symlink_to(path)
        return link

    def own(self, folder: Path) -> None:
        """A folder that is removed with the claim."""
        (self.folder / TEMPORARY).symlink_to(folder)

    def regions(self) -> list[Path]:
        return [path for path in SHARED_MEMORY.glob(f"{self.prefix}*") if path != self.folder]

    def clear(self) -> None:
        """Remove the server's processes and shared memory, and keep the claim."""
        self._clear(f"{FOLDER_VARIABLE}={self.heartbeats.folder}")

    def _clear(self, mark: str) -> None:
        kill_marked(mark, seconds=KILL_SECONDS)
        for path in (*self.regions(), *self.heartbeats.folder.glob("*")):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove everything."""
        self._clear(f"{VARIABLE}={self.name}")
        with suppress(OSError):
            shutil.rmtree(os.readlink(self.folder / TEMPORARY), ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def is_abandoned(self) -> bool:
        """Whether its owner has ended."""
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            return True
        finally:
            os.close(folder)


@contextmanager
def claimed() -> Iterator[Claim]:
    """A new claim, which is removed at the end."""
    claim = Claim.make()
    try:
        yield claim
    finally:
        claim.remove()


def start_reaper(claim: Claim) -> subprocess.Popen[bytes]:
    """The process that removes the claim when this one has been killed: serving/reaper.py."""
    command = [sys.executable, "-m", "cosmos_triton.serving.reaper", claim.name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def reclaim() -> list[str]:
    """Remove what servers of this user have left that ended without removing it.

    Returns:
        The names of their claims.
    """
    claims = {Claim(name) for name in _names() if (SHARED_MEMORY / f"{PREFIX}{name}_{FOLDER}").exists()}
    abandoned = [claim for claim in claims if claim.is_abandoned()]
    for claim in abandoned:
        claim.remove()
    for region in _unclaimed():
        region.unlink(missing_ok=True)
    return [claim.name for claim in abandoned]


def _own() -> Iterator[tuple[Path, str]]:
    """What of this user is in shared memory under the name of a claim, and that name."""
    for path in SHARED_MEMORY.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if (found := NAME.match(path.name)) and path.lstat().st_uid == os.geteuid():
                yield path, found[1]


def _names() -> set[str]:
    return {name for _, name in _own()}


def _unclaimed() -> list[Path]:
    """Regions without a claim, which earlier versions made, and which no process has open any more."""
    now = time.time()
    regions = []
    for path, name in _own():
        with suppress(OSError):
            has_claim = (SHARED_MEMORY / f"{PREFIX}{name}_{FOLDER}").exists()
            if not has_claim and path.is_file() and now - path.lstat().st_mtime > UNCLAIMED_SECONDS:
                regions.append(path)
    mapped = _mapped_names() if regions else set()
    return [path for path in regions if path.name not in mapped]


def _mapped_names() -> set[str]:
    """Names of all regions that a process of this user maps."""
    names: set[str] = set()
    for pid in all_pids():
        with suppress(OSError):
            maps = (PROC / str(pid) / "maps").read_text(errors="replace")
            names.update(re.findall(rf"/({PREFIX}\S+)", maps))
    return names
