"""The protocol of one HTTP/1 connection: requests in, one at a time to the application, responses out.

llhttp (httptools) reads the bytes; here they are bounded in size, number and time before, and what HTTP leaves to the
server is decided: one Host, no upgrade, no coding but `chunked`, no header from a trailer. RFC 9110 and 9112.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast
from urllib.parse import unquote

import httptools
from starlette.types import ASGIApp

from ..errors import (
    AWNetError,
    HeadersTooLarge,
    MalformedRequest,
    NotImplementedHere,
    RequestTimeout,
    TargetTooLong,
    VersionNotSupported,
)
from .admission import BODY, BUSY, HEAD, IDLE, LINGER, OPENED, UNCOUNTED_BYTES, Admission
from .arrival import Arrival
from .transaction import Headers, Transaction, response_head

MAX_TARGET_BYTES = 8 << 10
MAX_HEADERS = 100
MAX_PIPELINED = 32  # requests of one read that wait for the answers before theirs
BODY_BYTES_PER_CHUNK = 64  # of the whole body, once there are MANY_CHUNKS
MANY_CHUNKS = 1024
FRAMING_BYTES_PER_CHUNK = 64
SEND_SECONDS = 30.0  # a client that takes nothing of a response for this long is given up
LINGER_SECONDS, LINGER_BYTES = 2.0, 64 << 20  # what a client may go on sending after its last answer
HALF_CLOSED_SECONDS = 2.0  # nobody can tell a client that has gone from one that only has nothing more to send

_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+;=:%\[\]-]*")
_SPECIAL = frozenset({b"host", b"transfer-encoding", b"expect", b"content-length"})

TurnAway = Callable[[AWNetError, str], tuple[int, Iterable[tuple[bytes, bytes]], bytes]]


class State(Protocol):
    """What the connections of one port share: that of `uvicorn.server.ServerState`."""

    connections: set[Any]
    tasks: set[Any]
    default_headers: list[tuple[bytes, bytes]]
    total_requests: int


class Connection(asyncio.Protocol):
    """One client's connection.

    Args:
        app: answers requests.
        turn_away: counts a request that does not reach the application; gives status, headers and body of its answer.
        admission: which connections the port keeps, and its limits.
        state: shared by the connections of the port.
        arrival: what came before the first request, if anything.
    """

    def __init__(
        self, app: ASGIApp, turn_away: TurnAway, admission: Admission, state: State, arrival: Arrival | None = None
    ) -> None:
        self._app = app
        self._turn_away = turn_away
        self._admission = admission
        self._limits = admission.limits
        self._state = state
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until the connection is made
        self._arrival = arrival
        self._secure = arrival is not None and arrival.secure
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None

        self._phase = OPENED
        self._since = time.monotonic()
        self._running: Transaction | None = None
        self._waiting: deque[Transaction] = deque()  # behind it, pipelined
        self._receiving: Transaction | None = None  # the one whose body is read
        self._refusal: AWNetError | None = None  # the last answer, once those before it are out
        self._final = False  # nothing that comes from now on is read
        self._ended = False  # the client sends nothing more
        self._leaving = False  # the server does

        self._reading_head = False
        self._replaying = False  # the head of a request that asks for an upgrade is read again without that
        self._heads = 0  # that began in what came last
        self._head_bytes = 0  # fed of an unfinished head
        self._size = 0  # of a head's lines, or of a trailer's
        self._chunks = self._framing = 0  # of the body, and what it took beside it
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._special: dict[bytes, list[bytes]] = {}

        self._reading = True
        self._write_paused = False
        self._unsent, self._since_sent = 0, 0.0
        self._drained: asyncio.Event | None = None

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods alone
        self._client, self._server = _address(transport, "peername"), _address(transport, "sockname")
        crowded = self._admission.crowded()
        arrival = self._arrival
        if arrival is not None:
            self._client = arrival.client or self._client
            arrival.done()
        refusal = self._admission.enter(self, self._client[0] if self._client else "")
        if refusal is None and arrival is not None:
            refusal = arrival.refusal
        self._state.connections.add(self)
        if refusal is not None:
            self._refuse(refusal)
            if crowded:
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        self._admission.leave(self)
        self._abandon()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase == LINGER:
            self._size += len(data)
            if self._size > LINGER_BYTES:
                self._transport.abort()
            return
        if self._final:
            return
        if phase <= IDLE:
            self._phase, self._since = HEAD, time.monotonic()
        receiving, self._heads = self._receiving, 0
        taken = receiving.received if receiving is not None else 0
        self._feed(data)
        if self._reading_head:
            self._count_head(len(data), phase <= IDLE)
        elif receiving is not None and receiving is self._receiving:
            self._count_framing(len(data) - (receiving.received - taken))
        self._settle()

    def _count_head(self, count: int, from_idle: bool) -> None:
        """So many bytes came, and a head is unfinished. That of a whole one is counted exactly, see `on_header`."""
        if self._heads == 0:
            self._head_bytes += count
        else:
            self._head_bytes = count if from_idle and self._heads == 1 else 1
        if self._head_bytes > self._limits.header_bytes:
            self._refuse(HeadersTooLarge(f"the header is larger than {self._limits.header_bytes} bytes"))

    def _count_framing(self, count: int) -> None:
        """So many bytes came of an unfinished body that are no part of it: sizes of chunks, extensions, trailers."""
        self._framing += count
        if self._framing > self._limits.header_bytes + FRAMING_BYTES_PER_CHUNK * self._chunks:
            self._refuse(HeadersTooLarge("the chunks' extensions or the trailer are too large"))

    def eof_received(self) -> bool:
        """The client sends nothing more. It may still read, so what it has asked for whole is answered."""
        self._ended = True
        if self._phase == LINGER:
            return False
        receiving = self._receiving
        if self._reading_head:
            self._refuse(MalformedRequest("the request is cut"))
        elif receiving is not None and not receiving.complete:
            receiving.fail(MalformedRequest("the body is cut: the client has closed the connection"))
        elif self._running is None:
            return False
        self._final = True
        asyncio.get_running_loop().call_later(HALF_CLOSED_SECONDS, self._abandon)
        return not self._secure  # TLS as asyncio has it ends both ways at once

    def pause_writing(self) -> None:
        self._write_paused = True
        self._unsent, self._since_sent = self._transport.get_write_buffer_size(), time.monotonic()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._drained is not None:
            self._drained.set()

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        if self._replaying:
            return
        self._reading_head = True
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
        self._size += len(name) + len(value) + 4
        if self._size > self._limits.header_bytes or len(self._headers) >= MAX_HEADERS:
            raise self._refused(
                HeadersTooLarge(f"more than {self._limits.header_bytes} bytes or {MAX_HEADERS} lines of headers")
            )
        if not self._reading_head:
            return  # of a trailer, which must change nothing that was decided by the header
        name = name.lower()
        self._headers.append((name, value))
        if name in _SPECIAL:
            self._special.setdefault(name, []).append(value)

    def on_headers_complete(self) -> None:
        if self._replaying:
            self._replaying = False
            return
        self._reading_head = False
        self._size = self._chunks = self._framing = 0
        try:
            self._receiving = self._begin()
        except AWNetError as error:
            raise self._refused(error) from None

    def on_chunk_header(self) -> None:
        self._chunks += 1
        receiving = self._receiving
        received = receiving.received if receiving is not None else 0
        if self._chunks > MANY_CHUNKS + received // BODY_BYTES_PER_CHUNK:
            raise self._refused(MalformedRequest("the body comes in too many small chunks"))

    def on_body(self, data: bytes) -> None:
        receiving = self._receiving
        if receiving is None or receiving.answered or receiving.failed:
            return
        if not receiving.add(data):
            self._pause_reading()
        if receiving.received > UNCOUNTED_BYTES:
            count = receiving.received - receiving.counted
            receiving.counted += count
            self._admission.hold(count)

    def on_message_complete(self) -> None:
        if self._receiving is None or self._parser.should_upgrade():
            return
        self._receiving.finish()
        self._receiving = None

    # What a head asks for.

    def _begin(self) -> Transaction:
        """The request of the head that was read. Raises AWNetError."""
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
        try:
            url = httptools.parse_url(self._target)
            raw_path = url.path or b"/"
            path = raw_path.decode("ascii")
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            raise MalformedRequest("the request's target is no path") from None
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self._server,
            "client": self._client,
            "scheme": "https" if self._secure else "http",
            "root_path": "",
            "headers": self._headers,
            "method": method,
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": url.query or b"",
        }
        keep_alive = version == "1.1" and parser.should_keep_alive() and not self._leaving
        expects = special.get(b"expect", ())
        continues = version == "1.1" and len(expects) == 1 and expects[0].lower() == b"100-continue"
        transaction = Transaction(self, scope, keep_alive=keep_alive, expects_continue=continues)
        transaction.begun = time.monotonic()
        if self._running is None:
            self._start(transaction)
        elif len(self._waiting) >= MAX_PIPELINED:
            raise MalformedRequest(f"more than {MAX_PIPELINED} requests wait on this connection")
        else:
            self._waiting.append(transaction)
            self._pause_reading()
        return transaction

    def _feed(self, data: bytes) -> None:
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
                if self._refusal is None:
                    self._refuse(MalformedRequest("this is not HTTP/1.1 as RFC 9112 has it"))
                else:
                    self._refuse(self._refusal)
            return

    def _refused(self, error: AWNetError) -> AWNetError:
        """Remember why a callback stops the parser."""
        self._refusal = error
        return error

    # Requests in their order.

    def _start(self, transaction: Transaction) -> None:
        self._running = transaction
        task = asyncio.get_running_loop().create_task(transaction.run(self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._state.tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the application has logged it

    def answered(self, transaction: Transaction) -> None:
        """The response is out, or will never be: the next request's turn."""
        self._state.total_requests += 1
        self._release(transaction)
        if self._running is not transaction:
            return
        self._running = None
        if transaction.started and not transaction.answered:
            self._transport.abort()
        elif not transaction.answered:
            self._transport.close()
        if self._transport.is_closing():
            return
        if not transaction.complete:
            self._linger()
        elif not transaction.keep_alive:
            self._waiting.clear()
            self._close()
        elif self._waiting:
            upcoming = self._waiting.popleft()
            upcoming.begun = time.monotonic()
            self._start(upcoming)
            self._settle()
        elif self._refusal is not None:
            self._refuse(self._refusal)
        elif self._ended or self._leaving:
            self._close()
        else:
            self._phase, self._since = HEAD if self._reading_head else IDLE, time.monotonic()
            self.resume_reading()

    def _refuse(self, error: AWNetError) -> None:
        """Answer with `error` once the answers before that are out, and close."""
        self._final, self._reading_head = True, False
        receiving = self._receiving
        if receiving is not None and not receiving.answered:
            receiving.fail(error)
            return
        if self._running is not None:
            self._refusal = error
            return
        status, headers, body = self._turn_away(error, self._client[0] if self._client else "")
        ending = ((b"content-length", b"%d" % len(body)), (b"connection", b"close"))
        head = response_head(status, (*self._state.default_headers, *headers, *ending))
        self.write(b"".join((*head, b"\r\n", body)))
        self._linger()

    def _settle(self) -> None:
        """What the connection waits for now."""
        if self._phase == LINGER:
            return
        if self._running is not None:
            self._phase = BUSY if self._running.complete else BODY

    def _release(self, transaction: Transaction) -> None:
        if transaction.counted:
            count, transaction.counted = transaction.counted, 0
            self._admission.hold(-count)

    def _abandon(self) -> None:
        """The client is not waited for any more: nobody reads what would be answered."""
        for transaction in (self._running, *self._waiting):
            if transaction is not None:
                transaction.leave()
                self._release(transaction)
        self._waiting.clear()

    # The end.

    def shutdown(self) -> None:
        """The server ends: no more requests after the one that has begun."""
        self._leaving = True
        if self._running is not None:
            self._running.keep_alive = False
        elif not self._reading_head:
            self._transport.close()

    def _close(self) -> None:
        """Close behind the last answer; what the client has sent behind its last request must not reset that."""
        if self._reading and not self._reading_head:
            self._transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Close on a client that is still sending: slowly, or it would be reset before it has read its answer."""
        self._phase, self._since, self._size = LINGER, time.monotonic(), 0
        self.resume_reading()
        if self._ended or self._secure:  # TLS reads past what still comes by itself
            self._transport.close()
        elif self._transport.can_write_eof():
            self._transport.write_eof()

    # Flow.

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    async def writable(self) -> None:
        while self._write_paused:
            if self._drained is None:
                self._drained = asyncio.Event()
            self._drained.clear()
            await self._drained.wait()

    def default_headers(self) -> Headers:
        return self._state.default_headers

    def _pause_reading(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and not self._waiting and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    # What `Admission` asks.

    @property
    def waiting(self) -> tuple[int, float] | None:
        running = self._running
        if running is None:
            return self._phase, self._since
        return None if running.complete or running.started else (BODY, running.begun)

    @property
    def upload_rate(self) -> float | None:
        running = self._running
        if running is None or not running.counted or running.complete or running.started or running.failed:
            return None
        return running.received / (time.monotonic() - running.begun + 0.1)

    def sweep(self, now: float) -> None:
        limits, phase = self._limits, self._phase
        waited = now - self._since
        if self._write_paused:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._unsent:
                self._unsent, self._since_sent = unsent, now
            elif now - self._since_sent > SEND_SECONDS:
                self._transport.abort()
                return
            if phase == IDLE:
                self._since = now
        elif phase == BODY:
            running = self._running
            assert running is not None
            if now - running.begun > limits.body_seconds + running.received / limits.body_bytes_per_second:
                self.give_up(RequestTimeout("the body came too slowly"))
        elif phase == HEAD and waited > limits.header_seconds:
            self._refuse(RequestTimeout("the header came too slowly"))
        elif (phase == OPENED and waited > limits.header_seconds) or (
            phase == IDLE and waited > limits.keep_alive_seconds
        ):
            self._hang_up()
        elif phase == LINGER and waited > LINGER_SECONDS:
            self._transport.abort()

    def make_room(self) -> None:
        self._admission.leave(self)
        self._transport.abort()

    def give_up(self, error: AWNetError) -> None:
        running = self._running
        if running is not None and not running.started:
            self._final = True
            running.fail(error)
            self._release(running)

    def _hang_up(self) -> None:
        if self._transport.get_write_buffer_size():
            self._transport.abort()  # a close would wait for the client to take the rest of its last answer
        else:
            self._transport.close()


def _address(transport: asyncio.Transport, which: str) -> tuple[str, int] | None:
    found = transport.get_extra_info(which)
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None
