"""One request and its response on a connection, as an ASGI application sees them: `receive` and `send`."""

from __future__ import annotations

import asyncio
import http
from collections.abc import Iterable
from typing import Any, Protocol

from starlette.types import Message

from ..errors import AWNetError

HIGH_WATER_BYTES = 64 << 10  # of a body that waits for the application; then the client has to wait, too
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {
    int(status): f"HTTP/1.1 {int(status)} {status.phrase}".encode() for status in http.HTTPStatus if status >= 200
}

Headers = Iterable[tuple[bytes, bytes]]


class Line(Protocol):
    """The connection, as far as a transaction needs it.

    Attributes:
        write_paused: the client does not take what was written.
    """

    write_paused: bool

    def write(self, data: bytes) -> None:
        """Send bytes; dropped where the connection is lost."""

    async def writable(self) -> None:
        """Until the client has taken most of what was written."""

    def resume_reading(self) -> None:
        """The application wants more of the body."""

    def default_headers(self) -> Headers:
        """Of every response."""

    def answered(self, transaction: Transaction) -> None:
        """The response is out, or will never be."""


class Transaction:
    """A request whose head is there, and the answer to it; an application is handed `scope`, `receive` and `send`.

    Args:
        line: the connection.
        scope: as ASGI has it, its method in upper case.
        keep_alive: the client takes another response on this connection.
        expects_continue: it sends the body after "100 Continue".

    Attributes:
        complete: all of the request has come.
        answered: the response is out.
        gone: the client is.
        received: bytes of the body so far.
        counted: those of them that `Admission` counts.
        task: has the application answer it.
        begun: when the server began to wait for the body, on `core.clock`.
    """

    __slots__ = (
        "_chunked",
        "_chunks",
        "_delivered",
        "_expects_continue",
        "_failure",
        "_head",
        "_left",
        "_line",
        "_no_body",
        "_waiter",
        "_waiting_bytes",
        "answered",
        "begun",
        "complete",
        "counted",
        "gone",
        "keep_alive",
        "received",
        "scope",
        "started",
        "task",
    )

    def __init__(self, line: Line, scope: dict[str, Any], *, keep_alive: bool, expects_continue: bool) -> None:
        self._line = line
        self.scope = scope
        self.keep_alive = keep_alive
        self._expects_continue = expects_continue
        self.complete = self.answered = self.gone = self.started = False
        self.received = self.counted = 0
        self.begun = 0.0
        self.task: asyncio.Task[None] | None = None
        self._delivered = False  # the application knows that the body is complete
        self._chunks: list[bytes] = []
        self._waiting_bytes = 0
        self._failure: AWNetError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._head = b""  # of the response, until the first of its body is sent with it
        self._left: int | None = None  # bytes of the response's body by its Content-Length
        self._chunked = self._no_body = False

    def end(self) -> None:
        """The application is done; where it has not answered to the end, the connection is closed."""
        if not self.answered:
            self.keep_alive = False
            self._line.answered(self)

    # What the connection tells.

    def add(self, data: bytes) -> bool:
        """More of the body. Returns whether more may come at once."""
        self._chunks.append(data)
        self.received += len(data)
        self._waiting_bytes += len(data)
        self._wake()
        return self._waiting_bytes <= HIGH_WATER_BYTES

    def finish(self) -> None:
        """The request is complete."""
        self.complete = True
        self._wake()

    def fail(self, error: AWNetError) -> None:
        """The rest of the body will not come: `receive` raises `error`."""
        self._failure = error
        self._chunks.clear()
        self._wake()

    @property
    def failed(self) -> bool:
        """The rest of the body will not come."""
        return self._failure is not None

    def leave(self) -> None:
        """The client has gone."""
        self.gone = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ASGI.

    async def receive(self) -> Message:
        """More of the body, all that is there; then, that the client has gone. Raises what `fail` was given."""
        if self._expects_continue:
            self._expects_continue = False
            if not (self.complete or self.gone or self.started):
                self._line.write(CONTINUE)
        while not (self._chunks or (self.complete and not self._delivered) or self._over()):
            self._line.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._failure is not None and not self.gone:
            raise self._failure
        if self._over():
            return {"type": "http.disconnect"}
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._waiting_bytes = 0
        self._delivered = self.complete
        return {"type": "http.request", "body": body, "more_body": not self.complete}

    def _over(self) -> bool:
        return self.gone or self.answered or self._failure is not None

    async def send(self, message: Message) -> None:
        """The head of the response, or more of its body."""
        if message["type"] == "http.response.start":
            if self.started:
                raise RuntimeError("the response has begun already")
            self.started = True
            self._head = self._response_head(message["status"], message.get("headers", ()))
            return
        if not self.started or self.answered:
            raise RuntimeError("there is no response that has begun and goes on")
        line = self._line
        if line.write_paused:
            await line.writable()
        body, more = message.get("body", b""), message.get("more_body", False)
        written, self._head = self._head, b""
        if not self._no_body:
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (self._left and not more):
                    raise RuntimeError("the response's body is not as long as its Content-Length says")
            if self._chunked:
                written += b"%x\r\n%b\r\n" % (len(body), body) if body else b""
                written += b"" if more else b"0\r\n\r\n"
            else:
                written += body
        line.write(written)
        if not more:
            self.answered = True
            self._wake()
            line.answered(self)

    def _response_head(self, status: int, headers: Headers) -> bytes:
        self._no_body = self.scope["method"] == "HEAD" or status in (204, 304)
        given = [*self._line.default_headers(), *headers]
        head = response_head(status, given)
        closing = False
        for name, value in given:
            if name == b"content-length":
                self._left = int(value)
            elif name == b"connection" and value == b"close":
                closing = True
        if self._left is None and not self._no_body:
            self._chunked = self.scope["http_version"] == "1.1"
            head += b"transfer-encoding: chunked\r\n" if self._chunked else b""
            self.keep_alive = self.keep_alive and self._chunked
        # The rest of a body that the application does not read would have to be read past.
        self.keep_alive = self.keep_alive and not closing and self.complete
        if not self.keep_alive and not closing:
            head += b"connection: close\r\n"
        return head + b"\r\n"


def response_head(status: int, headers: Headers) -> bytes:
    """Status line and headers, without the empty line behind them."""
    lines = [_STATUS_LINES[status], *map(b": ".join, headers), b""]
    head = b"\r\n".join(lines)
    if not head.count(b"\n") == head.count(b"\r") == len(lines) - 1:
        raise RuntimeError("a response header with a line end")
    return head
