from __future__ import annotations

from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from cosmos_triton.export.checkpoints import download
from support.hub_server import TOKEN, Hub, HubServer


@pytest.fixture
def empty_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub that downloads of this process go to, with a good token and no pause between attempts."""
    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    yield server
    server.close()


@pytest.fixture
def hub(server: HubServer) -> Hub:
    """The state of a test file's own `server`."""
    return server.hub
