"""How the client reaches a server: proxies of the environment, and answers that are not a Triton server's."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from cosmos_triton.client import ServerFailed, ServerUnreachable, WorldClient, WorldError

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


class Listener:
    """Answers every connection alike, and counts them."""

    def __init__(self, answer: bytes) -> None:
        self.requests: list[bytes] = []
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._socket.accept()
                with contextlib.suppress(OSError), connection:
                    self.requests.append(connection.recv(65536))
                    connection.sendall(self._answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def proxy() -> Iterator[Listener]:
    listener = Listener(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    yield listener
    listener.close()


def unreachable(url: str, protocol: str = "grpc") -> str:
    with WorldClient(url, protocol) as client, pytest.raises(ServerUnreachable) as failure:
        client.deployment()
    return str(failure.value)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize(
    "url", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.8.7:1", "ipv4:127.0.0.1:1", "0.0.0.0:1"]
)
def test_this_machine_is_reached_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, proxy: Listener, variable: str, url: str
) -> None:
    monkeypatch.setenv(variable, f"http://{proxy.url}")
    assert "proxy" not in unreachable(url)
    assert proxy.requests == []


@pytest.mark.parametrize("variable", VARIABLES)
def test_another_machine_is_reached_through_the_proxy_and_the_error_says_so(
    monkeypatch: pytest.MonkeyPatch, proxy: Listener, variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://user:secret@{proxy.url}")
    message = unreachable("192.0.2.1:8001")  # an address that nobody has
    assert message.startswith(f"no connection to 192.0.2.1:8001 over grpc through the proxy of {variable}: ")
    assert "secret" not in message
    assert proxy.requests[0].startswith(b"CONNECT 192.0.2.1:8001 ")


def test_no_proxy_is_kept(monkeypatch: pytest.MonkeyPatch, proxy: Listener) -> None:
    monkeypatch.setenv("http_proxy", f"http://{proxy.url}")
    monkeypatch.setenv("no_proxy", "example.invalid")
    assert "proxy" not in unreachable("server.example.invalid:8001")
    assert proxy.requests == []


def test_http_uses_no_proxy(monkeypatch: pytest.MonkeyPatch, proxy: Listener) -> None:
    monkeypatch.setenv("http_proxy", f"http://{proxy.url}")
    assert "proxy" not in unreachable("127.0.0.1:1", "http")
    assert proxy.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<h1>Log in</h",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nInference-Header-Content-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nInference-Header-Content-Length: x\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\n<h1>\xff",
        b"nonsense\r\n\r\n",
    ],
    ids=range(7),
)
def test_what_is_no_triton_server_is_an_error_of_the_client(answer: bytes) -> None:
    listener = Listener(answer)
    try:
        with WorldClient(listener.url, "http") as client:
            with pytest.raises(WorldError):
                client.generate(b"clip")
            with pytest.raises((ServerFailed, ServerUnreachable)):
                client.deployment()
    finally:
        listener.close()
