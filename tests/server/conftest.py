from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.paths import SUPPORT, TOYS
from support.served import Server


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers of the toy repository, or of another one; none of them outlives the test."""
    servers = []

    def make(repository: Path = TOYS) -> Server:
        servers.append(Server([sys.executable, SUPPORT / "serve_toys.py", repository], tmp_path))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
