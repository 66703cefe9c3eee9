"""What the hub, or what stands before it, says no with: its own reason and what to do, in one line a repository."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from cosmos_triton.cli.main import main
from cosmos_triton.export.checkpoints import download as download_module
from cosmos_triton.export.checkpoints.hub_repositories import hub_repositories
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.releases import COSMOS_1_0
from support.hub_server import Hub, HubRepository, HubServer

AR = "nvidia/Cosmos-1.0-Autoregressive-4B"
NAMES = [r.name for r in hub_repositories(COSMOS_1_0) if r.needed_by(DEPLOYMENTS["4b"])]
EXPIRED = 'User Access Token "laptop" is expired'


@pytest.fixture
def server(empty_hub: HubServer) -> HubServer:
    empty_hub.hub.repositories = {name: HubRepository({"a" * 40: {}}) for name in NAMES}
    empty_hub.hub.repositories[AR] = HubRepository(
        {"a" * 40: {"model.pt": bytes(range(250)) * 20, "config.json": b"{}"}}
    )
    return empty_hub


def line_about_ar(directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The other repositories are empty; each problem is one line."""
    assert main(["checkpoints", "download", "--deployment", "4b", "--to", str(directory / "new")]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = err.splitlines()
    assert len(lines) == len(NAMES)
    assert not (directory / "new").exists()
    return lines[0]


def in_header(reason: str, code: str = "") -> dict[str, str]:
    return {"X-Error-Message": reason} | ({"X-Error-Code": code} if code else {})


def in_body(reason: object) -> bytes:
    return json.dumps({"error": reason}).encode()


WITH_TOKEN = {
    "expired, in the header": (
        (401, in_header(EXPIRED), b""),
        f"the hub does not accept the token (the hub says: {EXPIRED}): make another at ",
    ),
    "expired, in the body": (
        (401, {"Content-Type": "application/json"}, in_body(EXPIRED)),
        f"the hub does not accept the token (the hub says: {EXPIRED}): make another at ",
    ),
    "expired, as a missing repository": (
        (401, in_header(EXPIRED, "RepoNotFound"), b""),
        f"the hub does not accept the token (the hub says: {EXPIRED}): make another at ",
    ),
    "not a token": (
        (401, in_header("Invalid credentials in Authorization header"), b""),
        "the hub does not accept the token (the hub says: Invalid credentials in Authorization header): ",
    ),
    "no reason": ((401, {}, b""), "the hub does not accept the token: make another at "),
    "waits for approval": (
        (403, in_header("Your request to access this model is awaiting a review.", "GatedRepo"), b""),
        f"access is not granted: accept its licence at https://huggingface.co/{AR} (the hub says: Your request to ",
    ),
    "scope": (
        (403, in_header("Enable public gated repositories in your token's settings."), b""),
        "the hub answers 403: Enable public gated repositories in your token's settings.; see what the token may do ",
    ),
    "disabled": ((403, in_header("Access to this resource is disabled."), b""), "disabled."),
    "missing": ((404, in_header("Repository not found", "RepoNotFound"), b""), "no such repository, or a private one"),
    "rate, in seconds": (
        (429, {"Retry-After": "17"} | in_header("We had to rate limit you"), b""),
        "the hub answers 429: We had to rate limit you; too many requests, try again in 17 s",
    ),
    "rate, in the policy": (
        (429, {"RateLimit": '"api";r=0;t=55'}, b""),
        "the hub answers 429: Too Many Requests; too many requests, try again in 55 s",
    ),
    "overload": ((503, {}, in_body("Overloaded")), "the hub answers 503: Overloaded; try again later"),
    "two reasons": ((500, {}, in_body(["one", "two\nlines"])), "the hub answers 500: one two lines; try again later"),
    "a proxy's page": ((502, {"Content-Type": "text/html"}, b"<h1>Bad"), "the hub answers 502: Bad Gateway; try"),
    "a long page": ((500, {}, b"x" * 100_000), "..."),
    "a login page": ((200, {"Content-Type": "text/html"}, b"<h1>Log in"), "something else than the hub does, such as "),
    "a proxy's login": ((407, {}, b""), "the hub answers 407: Proxy Authentication Required; the proxy wants a user"),
}


@pytest.mark.parametrize(("answer", "expected"), WITH_TOKEN.values(), ids=WITH_TOKEN)
def test_the_hubs_reason_is_shown_with_what_to_do(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: tuple, expected: str
) -> None:
    hub.answers[f"{AR}/revision/main"] = answer
    line = line_about_ar(tmp_path, capsys)
    assert line.startswith(f"{AR}: ")
    assert expected in line
    assert len(line) < 600


def test_a_reason_for_a_file_is_shown_too(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hub may list the files of a repository for anybody, and refuse the files themselves."""
    hub.answers["config.json"] = (401, in_header(EXPIRED), b"")
    assert EXPIRED in line_about_ar(tmp_path, capsys)


def test_without_a_token_a_refusal_is_about_no_token(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    hub.answers[f"{AR}/revision/main"] = (401, in_header("Invalid username or password."), b"")
    line = line_about_ar(tmp_path, capsys)
    assert line.endswith(
        "the hub answers 401: Invalid username or password.; log in with `hf auth login` or set HF_TOKEN"
    )
    hub.answers[f"{AR}/revision/main"] = (401, in_header("Invalid username or password.", "RepoNotFound"), b"")
    line = line_about_ar(tmp_path, capsys)
    assert line.endswith("no token to log in with (the hub says: Invalid username or password.)")


@pytest.mark.parametrize(("status", "tries"), [(401, 1), (404, 1), (403, 5), (429, 5), (503, 5)])
def test_a_refusal_in_the_middle_has_its_reason_and_is_repeated_only_if_that_may_help(
    server: HubServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    tries: int,
) -> None:
    monkeypatch.setattr(
        download_module, "hub_repositories", lambda release: [r for r in hub_repositories(release) if r.name == AR]
    )
    server.hub.answers[f"cdn/{AR}/resolve/{'a' * 40}/model.pt"] = (status, in_header("no more today"), b"")
    assert main(["checkpoints", "download", "--deployment", "4b", "--to", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"{server.url}/{AR}/resolve/{'a' * 40}/model.pt: ")
    assert "no more today" in err
    assert err.endswith("; run again to continue\n")
    assert err.count("\n") == 1
    assert len(server.hub.fetched()) == tries + 1  # and config.json


def test_a_disk_that_fills_up_is_named(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        download_module, "hub_repositories", lambda release: [r for r in hub_repositories(release) if r.name == AR]
    )

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download_module, "_stream", fail)
    assert main(["checkpoints", "download", "--deployment", "4b", "--to", str(tmp_path)]) == 1
    assert "config.json: No space left on device; run again to continue\n" in capsys.readouterr().err


# Networks


@pytest.fixture
def network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., list[str]]]:
    """Downloads with an environment, which the hub's library reads when it opens a session; returns the lines."""

    def download(endpoint: str, **environment: str) -> list[str]:
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(constants, "ENDPOINT", endpoint)
            close_session()
            assert main(["checkpoints", "download", "--deployment", "4b", "--to", str(tmp_path / "x")]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == len(NAMES), lines
        return lines

    yield download
    close_session()


@contextlib.contextmanager
def answering(answer: bytes, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Answers every connection alike; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = listener.accept()
                with contextlib.suppress(OSError), connection:
                    stream = context.wrap_socket(connection, server_side=True) if context else connection
                    stream.recv(65536)
                    stream.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_a_proxy_that_refuses_is_named_without_its_password(network: Callable[..., list[str]]) -> None:
    answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with answering(answer) as port:
        proxy = f"http://user:secret@127.0.0.1:{port}"
        for variable, endpoint in (
            ("HTTPS_PROXY", "https://hub.invalid"),
            ("http_proxy", "http://hub.invalid"),
            ("ALL_PROXY", "https://hub.invalid"),
        ):
            for line in network(endpoint, **{variable: proxy}):
                assert "407" in line
                assert f"(through the proxy of {variable.upper()})" in line
                assert "secret" not in line


def test_a_certificate_of_the_networks_own_is_explained(network: Callable[..., list[str]], tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with answering(b"", context) as port:
        for line in network(f"https://127.0.0.1:{port}"):
            assert f"https://127.0.0.1:{port} is out of reach: " in line
            assert "CERTIFICATE_VERIFY_FAILED" in line
            assert "set SSL_CERT_FILE" in line
            assert "through the proxy" not in line


def test_offline_mode_is_explained(network: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for line in network("https://hub.invalid"):
        assert "HF_HUB_OFFLINE" in line
