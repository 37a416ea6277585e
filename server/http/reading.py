"""Reads the requests of a connection out of its bytes: heads and bodies, in bounds of size and number.

llhttp (httptools) parses; here bytes are bounded before, and what HTTP leaves to the server is decided: one Host, no
upgrade, no coding but `chunked`, no header from a trailer. RFC 9110 and 9112.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

import httptools

from ..errors import (
    AWNetError,
    HeadersTooLarge,
    MalformedRequest,
    NotImplementedHere,
    TargetTooLong,
    VersionNotSupported,
)

MAX_TARGET_BYTES = 8 << 10
MAX_KEPT_TARGETS, MAX_KEPT_TARGET_BYTES = 64, 128  # that are not read again: clients ask for few different ones
MAX_HEADERS = 100
BODY_BYTES_PER_CHUNK = 64  # of the whole body, once there are MANY_CHUNKS
MANY_CHUNKS = 1024
FRAMING_BYTES_PER_CHUNK = 64

_ASGI = {"version": "3.0", "spec_version": "2.3"}
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+;=:%\[\]-]*")
_SPECIAL = frozenset({b"host", b"transfer-encoding", b"expect", b"content-length"})


class Handler(Protocol):
    """What becomes of requests."""

    def begin(self, scope: dict[str, Any], *, keep_alive: bool, expects_continue: bool) -> None:
        """A head is there: the request's part of an ASGI scope. Raises AWNetError where it must not be taken."""

    def add(self, data: bytes) -> None:
        """More of the body of that request."""

    def finish(self) -> None:
        """That request is complete."""


class RequestReader:
    """The requests of one connection, one after the other.

    Args:
        handler: is told of each.
        header_bytes: of a head at most; of a trailer, and of what frames a chunked body, too.

    Attributes:
        within_head: a head has begun and is not there yet.
    """

    def __init__(self, handler: Handler, header_bytes: int) -> None:
        self._handler = handler
        self._header_bytes = header_bytes
        self._parser = httptools.HttpRequestParser(self)
        self._reason: AWNetError | None = None  # why a callback has stopped the parser
        self.within_head = False
        self._within_body = False
        self._replaying = False  # the head of a request that asks for an upgrade is read again without that
        self._requests = 0
        self._heads = 0  # that began in what came last
        self._head_bytes = 0  # fed of an unfinished head
        self._size = 0  # of a head's lines, or of a trailer's
        self._received = self._chunks = self._framing = 0  # of the body, and what it took beside it
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._special: dict[bytes, list[bytes]] = {}

    def feed(self, data: bytes, idle: bool) -> AWNetError | None:
        """Read what has come.

        Args:
            idle: nothing had come since the last request was complete.

        Returns:
            Why nothing that comes from now on can be read, if so; feed no more then.
        """
        request = self._requests if self._within_body else None
        self._heads, received = 0, self._received
        refusal = self._parse(data)
        if refusal is None and self.within_head:
            refusal = self._count_head(len(data), idle)
        elif refusal is None and self._within_body and request == self._requests:
            refusal = self._count_framing(len(data) - (self._received - received))
        if refusal is not None:
            self.end()
        return refusal

    def end(self) -> None:
        """Nothing more is read; what has come of a head is forgotten."""
        self.within_head = False

    def _count_head(self, count: int, from_idle: bool) -> AWNetError | None:
        """So many bytes came, and a head is unfinished. That of a whole one is counted exactly, see `on_header`."""
        if self._heads == 0:
            self._head_bytes += count
        else:
            self._head_bytes = count if from_idle and self._heads == 1 else 1
        if self._head_bytes > self._header_bytes:
            return HeadersTooLarge(f"the header is larger than {self._header_bytes} bytes")
        return None

    def _count_framing(self, count: int) -> AWNetError | None:
        """So many bytes came of an unfinished body that are no part of it: sizes of chunks, extensions, trailers."""
        self._framing += count
        if self._framing > self._header_bytes + FRAMING_BYTES_PER_CHUNK * self._chunks:
            return HeadersTooLarge("the chunks' extensions or the trailer are too large")
        return None

    def _parse(self, data: bytes) -> AWNetError | None:
        """Have the parser read `data`."""
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # The parser stops behind a head that asks for one. RFC 9110, 7.8: a server may ignore it, and then
                # the body is as usual. So a new parser is given what frames the body, and what came behind the head.
                data = data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
                self._replaying = True
                framing = (b"content-length", b"transfer-encoding")
                lines = [b"%s: %s\r\n" % (name, value) for name in framing for value in self._special.get(name, ())]
                data = b"POST / HTTP/1.1\r\n" + b"".join(lines) + b"\r\n" + data
                continue
            except httptools.HttpParserError:
                return self._reason or MalformedRequest("this is not HTTP/1.1 as RFC 9112 has it")
            return None

    def _refused(self, error: AWNetError) -> AWNetError:
        """Remember why a callback stops the parser."""
        self._reason = error
        return error

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        if self._replaying:
            return
        self.within_head = True
        self._heads += 1
        self._target, self._headers, self._special, self._size = b"", [], {}, 0

    def on_url(self, part: bytes) -> None:
        if self._replaying:
            return
        self._target += part
        if len(self._target) > MAX_TARGET_BYTES:
            raise self._refused(TargetTooLong(f"the request's target is longer than {MAX_TARGET_BYTES} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._replaying:
            return
        headers = self._headers
        self._size += len(name) + len(value) + 4
        if self._size > self._header_bytes or len(headers) >= MAX_HEADERS:
            raise self._refused(
                HeadersTooLarge(f"more than {self._header_bytes} bytes or {MAX_HEADERS} lines of headers")
            )
        if not self.within_head:
            return  # of a trailer, which must change nothing that was decided by the header
        name = name.lower()
        headers.append((name, value))
        if name in _SPECIAL:
            self._special.setdefault(name, []).append(value)

    def on_headers_complete(self) -> None:
        if self._replaying:
            self._replaying = False
            return
        self.within_head = False
        self._within_body = True
        self._requests += 1
        self._size = self._received = self._chunks = self._framing = 0
        try:
            self._begin()
        except AWNetError as error:
            raise self._refused(error) from None

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > MANY_CHUNKS + self._received // BODY_BYTES_PER_CHUNK:
            raise self._refused(MalformedRequest("the body comes in too many small chunks"))

    def on_body(self, data: bytes) -> None:
        self._received += len(data)
        self._handler.add(data)

    def on_message_complete(self) -> None:
        if not self._parser.should_upgrade():
            self._within_body = False
            self._handler.finish()

    # What a head asks for.

    def _begin(self) -> None:
        """Hand over the request of the head that was read. Raises AWNetError."""
        parser, special = self._parser, self._special
        version, method = parser.get_http_version(), parser.get_method().decode("ascii")
        if version not in ("1.1", "1.0"):
            raise VersionNotSupported("only HTTP/1.1 and HTTP/1.0 are spoken here")
        hosts = special.get(b"host", ())
        if len(hosts) > 1 or (version == "1.1" and not hosts) or (hosts and not _HOST.fullmatch(hosts[0])):
            raise MalformedRequest("a request has one Host header with the name of a host")
        codings = special.get(b"transfer-encoding")
        if codings is not None:
            if version == "1.0":
                raise MalformedRequest("HTTP/1.0 has no Transfer-Encoding")
            named = [coding.strip().lower() for coding in b",".join(codings).split(b",")]
            if named[-1] != b"chunked":
                raise MalformedRequest("nobody knows where a body ends whose last Transfer-Encoding is not chunked")
            if len(named) > 1:
                raise NotImplementedHere("no Transfer-Encoding is understood but chunked")
        if method == "CONNECT":
            raise NotImplementedHere("this is no proxy")
        read = _often_read if len(self._target) <= MAX_KEPT_TARGET_BYTES else _read_target
        target = read(self._target)
        headers = self._headers
        if target.host is not None:  # RFC 9112, 3.2.2: the host of such a target counts, not the header's
            headers = [(b"host", target.host), *(header for header in headers if header[0] != b"host")]
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "root_path": "",
            "headers": headers,
            "method": method,
            "path": target.path,
            "raw_path": target.raw_path,
            "query_string": target.query,
        }
        keep_alive = version == "1.1" and parser.should_keep_alive()
        expects = special.get(b"expect", ())
        continues = version == "1.1" and len(expects) == 1 and expects[0].lower() == b"100-continue"
        self._handler.begin(scope, keep_alive=keep_alive, expects_continue=continues)


class _Target(NamedTuple):
    """What a request is for. `host`: of an address that names one, as a Host header has it."""

    path: str
    raw_path: bytes
    query: bytes
    host: bytes | None


def _read_target(target: bytes) -> _Target:
    """Raises MalformedRequest."""
    try:
        url = httptools.parse_url(target)
        raw_path = url.path or b"/"
        path = raw_path.decode("ascii")
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
        raise MalformedRequest("the request's target is no path") from None
    host = b"[%s]" % url.host if url.host is not None and b":" in url.host else url.host
    return _Target(unquote(path) if "%" in path else path, raw_path, url.query or b"", host)


_often_read = lru_cache(MAX_KEPT_TARGETS)(_read_target)
