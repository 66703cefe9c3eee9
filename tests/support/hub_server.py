"""A small hub on loopback: the part of huggingface.co's HTTP interface that a download uses.

Files above LARGE bytes are kept as on the hub: the API tells their SHA-256, and `resolve` redirects to another address.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 1000
TOKEN = "hf_good"


@dataclass
class HubRepository:
    """`versions` are commits, the last one is main. `gate`: None, "gated" or "private"."""

    versions: dict[str, dict[str, bytes]]
    gate: str | None = None

    @property
    def main(self) -> str:
        return list(self.versions)[-1]


@dataclass
class Hub:
    """The server's state, which a test sets and reads."""

    repositories: dict[str, HubRepository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range header
    cut_after: dict[str, list[int]] = field(default_factory=dict)  # file name -> bytes sent before each cut
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)  # path ending -> status, ...
    ignores_ranges: bool = False
    granted: bool = True

    def fetched(self) -> list[tuple[str, str | None]]:
        """Name and range of every file whose content was asked for."""
        return [
            (path.rpartition("/")[2], span)
            for method, path, span in self.requests
            if method == "GET" and "/cdn/" in path
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if answer := next((answer for end, answer in self.hub.answers.items() if path.endswith(end)), None):
            self._answer(*answer)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(\w+)", path):
            self._describe(*match.groups())
        elif match := re.fullmatch(r"/(cdn/)?([^/]+/[^/]+)/resolve/(\w+)/(.+)", path):
            self._resolve(*match.groups())
        else:
            self._answer(404)

    def _repository(self, name: str, *, for_files: bool) -> HubRepository | None:
        """The repository, or None after an answer that says why not."""
        repository = self.hub.repositories.get(name)
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.gate == "private" and not authorized):
            self._answer(401, {"X-Error-Code": "RepoNotFound"})
        elif repository.gate == "gated" and for_files and not (authorized and self.hub.granted):
            self._answer(403 if authorized else 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        else:
            return repository
        return None

    def _describe(self, name: str, revision: str) -> None:
        repository = self._repository(name, for_files=False)
        if repository is None:
            return
        commit = repository.main if revision == "main" else revision
        if commit not in repository.versions:
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for path, content in repository.versions[commit].items():
            git_sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            sibling: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": git_sha1}
            if len(content) > LARGE:
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
            siblings.append(sibling)
        self._answer(200, {}, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode())

    def _resolve(self, is_cdn: str | None, name: str, commit: str, path: str) -> None:
        repository = self.hub.repositories[name] if is_cdn else self._repository(name, for_files=True)
        if repository is None:
            return
        content = repository.versions[commit].get(path)
        if content is None:
            self._answer(404, {"X-Error-Code": "EntryNotFound"})
        elif self.command == "HEAD":
            self._answer(200, {"ETag": '"tag"', "X-Repo-Commit": commit, "Content-Length": str(len(content))})
        elif not is_cdn:
            self._answer(302, {"Location": f"/cdn/{name}/resolve/{commit}/{path}"})
        else:
            self._send_file(path, content)

    def _send_file(self, path: str, content: bytes) -> None:
        status, headers = 200, {}
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if span and not self.hub.ignores_ranges:
            start = int(span[1])
            if start >= len(content):
                self._answer(416)
                return
            status, headers = 206, {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            content = content[start:]
        cuts = self.hub.cut_after.get(path.rpartition("/")[2])
        if cuts:
            self._answer(status, headers | {"Content-Length": str(len(content))}, content[: cuts.pop(0)])
            self.close_connection = True
        else:
            self._answer(status, headers, content)

    def _answer(self, status: int, headers: dict[str, str] | None = None, content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class HubServer:
    """Serves a Hub on a free port of loopback until it is closed."""

    def __init__(self) -> None:
        self.hub = Hub()
        handler = type("Handler", (_Handler,), {"hub": self.hub})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
