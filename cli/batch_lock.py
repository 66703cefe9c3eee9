"""One batch at a time in a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosmos_triton.client.errors import InvalidInput

if sys.platform != "win32":  # where folders have no locks
    import fcntl


@contextmanager
def locked(flag: str, folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder. It leaves no file, and the system releases it when the process ends.

    Raises:
        InvalidInput: another batch holds it.
    """
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            accepted = "a folder that no other batch is writing to"
            raise InvalidInput(f"{flag}: value {str(folder)!r}; accepted: {accepted}") from None
        except OSError:  # a file system without locks on folders, such as NFS
            pass
        yield
    finally:
        os.close(handle)
