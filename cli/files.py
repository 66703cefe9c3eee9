"""Output files: tried before the work that fills them, written atomically, and kept elsewhere if that fails."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cosmos_triton.client.errors import InvalidInput

VIDEO_ROOM = 4 * 2**20  # bytes; more than a video takes
TEXT_ROOM = 2**16  # bytes; of a report, or a batch's results


def check_output(flag: str, path: Path, *, room: int) -> None:
    """Check that a file can be written, by writing and removing `room` bytes beside it.

    Raises:
        InvalidInput: it cannot. The message names the flag.
    """
    with _named(flag, path, accepted="a file that can be written"):
        mode = _mode(path)
        if mode is not None and stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if mode is not None and (mode & 0o222 == 0 or not os.access(path, os.W_OK)):
            raise OSError(errno.EACCES, "it is read-only")
        if mode is None or stat.S_ISREG(mode):  # devices and pipes are written in place
            _try_folder(Path(os.path.realpath(path)), room)


def check_folder(flag: str, folder: Path, *, room: int = TEXT_ROOM) -> None:
    """Check that files can be written into a folder, which need not exist.

    Raises:
        InvalidInput: they cannot. The message names the flag.
    """
    with _named(flag, folder, accepted="a folder that can be written"):
        mode = _mode(folder)
        if mode is not None and not stat.S_ISDIR(mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        _try_folder(Path(os.path.realpath(folder)) / "file", room)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it never exists in part. Missing parent folders are created.

    A link stays one: what it leads to is written.

    Raises:
        OSError: with the name of the file.
    """
    try:
        if (mode := _mode(path)) is not None and not stat.S_ISREG(mode):
            _write_in_place(path, content)
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = _scratch(target.parent)
        try:
            scratch.write_bytes(content)
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write_in_place(path: Path, content: bytes) -> None:
    """Write a device such as /dev/null, or a pipe. A pipe that nobody reads is an error: opening it would wait."""
    handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def save(flag: str, path: Path, content: bytes) -> str | None:
    """Write a result, or keep it elsewhere; returns what went wrong, and where the result is."""
    try:
        write_atomically(path, content)
    except OSError as error:
        kept = _keep(content, path.suffix)
        where = f"it is kept in {kept}" if kept else "no other folder takes it either, it is lost"
        return f"{flag}: value {str(path)!r}: {error.strerror}; {where}"
    return None


def _keep(content: bytes, suffix: str) -> Path | None:
    """Write into the first folder that takes it: for temporary files, the working directory, the user's home."""
    folders: tuple[Callable[[], str | Path], ...] = (tempfile.gettempdir, Path.cwd, Path.home)
    for folder in folders:
        with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home
            handle, name = tempfile.mkstemp(prefix="cosmos-triton-", suffix=suffix[:10], dir=folder())
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
            except OSError:
                os.unlink(name)
                raise
            return Path(name).absolute()
    return None


def _mode(path: Path) -> int | None:
    """Type and permissions of what is there; None if there is nothing. Raises OSError if nothing can be there."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _try_folder(target: Path, room: int) -> None:
    """Raise OSError unless `target` may be a file's name and so many bytes fit beside it. Nothing is left behind."""
    missing = [folder for folder in target.parents if not folder.exists()]
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            with suppress(FileExistsError):  # another process made it
                folder.mkdir()
                made.append(folder)
        _mode(target)  # the name may be too long
        scratch = _scratch(target.parent)
        try:
            with scratch.open("xb") as file:
                file.write(bytes(room))
        finally:
            scratch.unlink(missing_ok=True)
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # somebody has put a file there
                folder.rmdir()


def _scratch(folder: Path) -> Path:
    return folder / f".cosmos-triton-{secrets.token_hex(8)}"


@contextmanager
def _named(flag: str, path: Path, *, accepted: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidInput(f"{flag}: value {str(path)!r}; accepted: {accepted} ({error.strerror})") from None
