"""One HTTP request as it is parsed, held within bounds."""

from __future__ import annotations

from collections.abc import Callable

import httptools

from cosmos_triton.serving.front.errors import Code, Refusal, invalid
from cosmos_triton.serving.front.http_messages import Head
from cosmos_triton.serving.front.limits import BODY_BYTES, CHUNKS, HEAD_BYTES


class Incoming:
    """What the parser has found.

    Bytes behind the request are not parsed as another one: `has_surplus` then says that the connection has to end.

    Args:
        take: called with the length of each piece of the body; may raise Refusal.
    """

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = self._raw_bytes = self._chunks = self._body_bytes = 0
        self._refusal: Refusal | None = None
        self.pieces: list[bytes] = []
        self.head: Head | None = None
        self.is_complete = self.has_surplus = self.is_http_1_0 = self._keeps_alive = False

    def feed(self, data: bytes) -> None:
        """Parse the next bytes.

        Raises:
            Refusal: they are out of bounds, or no HTTP.
        """
        self._raw_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            raise self._refusal or invalid("request", "no HTTP/1.1", "a request line, headers and a body") from error
        if self.head is None and self._raw_bytes > HEAD_BYTES:
            raise _head_too_large()
        if self._raw_bytes > 2 * BODY_BYTES:  # in the lines between chunks
            raise _too_large()

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # The client offers another protocol, which is not spoken here. The parser takes no body then: another one
            # does, behind a head that says no more than the body's form.
            self._keeps_alive = False
            if self.head and (form := self.head.headers.keys() & {"content-length", "transfer-encoding"}):
                self.is_complete = False
                self._parser = httptools.HttpRequestParser(self)
                lines = "".join(f"{name}: {self.head.headers[name]}\r\n" for name in form)
                self._parser.feed_data(f"POST / HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + data[upgrade.args[0] :])

    @property
    def keeps_alive(self) -> bool:
        return self._keeps_alive and not self.has_surplus

    # What the parser calls. An exception ends the parsing; it wraps it into one of its own.

    def on_message_begin(self) -> None:
        self.has_surplus = self.is_complete

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        if self.head is None:
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        if self.head is not None:
            return
        path = self._url.partition(b"?")[0].decode("latin-1")
        self._keeps_alive = self._parser.should_keep_alive()  # which it forgets at the end
        self.is_http_1_0 = self._parser.get_http_version() == "1.0"
        self.head = Head(self._parser.get_method().decode("ascii"), path, self._headers)

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > CHUNKS:
            self._refuse(invalid("body", f"more than {CHUNKS} chunks", f"at most {CHUNKS} chunks"))

    def on_body(self, data: bytes) -> None:
        if self.has_surplus:
            return
        self._body_bytes += len(data)
        if self._body_bytes > BODY_BYTES:
            self._refuse(_too_large())
        try:
            self._take(len(data))
        except Refusal as refusal:
            self._refuse(refusal)
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        self.is_complete = True

    def _count_head(self, count: int) -> None:
        self._head_bytes += 0 if self.has_surplus else count
        if self._head_bytes > HEAD_BYTES:
            self._refuse(_head_too_large())

    def _refuse(self, refusal: Refusal) -> None:
        self._refusal = refusal
        raise refusal


def check_head(head: Head) -> None:
    """Raises Refusal for a body that is too large or compressed, before any of it is read."""
    headers = head.headers
    if (encoding := headers.get("content-encoding", "identity").lower()) not in ("", "identity"):
        raise invalid("Content-Encoding", repr(encoding[:32]), "identity: a body that is not compressed", status=415)
    if headers.get("transfer-encoding", "chunked").lower() != "chunked":
        raise Refusal(Code.UNIMPLEMENTED, "[INVALID_ARG] Transfer-Encoding: accepted: chunked")
    # The parser has refused a length that is no number.
    if int(headers.get("content-length") or 0) > BODY_BYTES:
        raise _too_large()


def _too_large() -> Refusal:
    return invalid("body", f"more than {BODY_BYTES} bytes", f"at most {BODY_BYTES} bytes")


def _head_too_large() -> Refusal:
    return invalid("headers", f"more than {HEAD_BYTES} bytes", f"at most {HEAD_BYTES} bytes", status=431)
