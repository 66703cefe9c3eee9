from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.paths import TOYS
from support.toys import ToyServer


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[Callable[..., ToyServer]]:
    """Makes servers of the toy repository, or of another one, that a test may damage; none of them outlives it."""
    servers: list[ToyServer] = []

    def make(repository: Path = TOYS) -> ToyServer:
        servers.append(ToyServer(tmp_path, repository))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def toy_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ToyServer]]:
    """The server of the toy repository as a deployment, by name; tests leave it as it is."""
    servers: dict[str, ToyServer] = {}

    def get(deployment: str) -> ToyServer:
        if deployment not in servers:
            servers[deployment] = ToyServer(tmp_path_factory.mktemp(deployment), deployment=deployment)
            servers[deployment].start()
        return servers[deployment]

    yield get
    for server in servers.values():
        server.close()


@pytest.fixture(scope="session")
def server(toy_of: Callable[[str], ToyServer]) -> ToyServer:
    return toy_of("4b")
