"""The protocol of one HTTP/1 connection: requests in, one at a time to the application, responses out.

`reading.RequestReader` makes requests of the bytes. Here they are put in order and bounded in number and time, and the
connection is ended in the way that its client can follow.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

from starlette.types import ASGIApp

from ..core import clock
from ..errors import AWNetError, MalformedRequest, RequestTimeout
from .admission import BODY, BUSY, HEAD, IDLE, LINGER, OPENED, UNCOUNTED_BYTES, Admission
from .arrival import Arrival
from .reading import RequestReader
from .transaction import Headers, Transaction, response_head

MAX_PIPELINED = 32  # requests of one read that wait for the answers before theirs
SEND_SECONDS = 30.0  # a client that takes nothing of a response for this long is given up
LINGER_SECONDS, LINGER_BYTES = 2.0, 64 << 20  # what a client may go on sending after its last answer
HALF_CLOSED_SECONDS = 2.0  # nobody can tell a client that has gone from one that only has nothing more to send

log = logging.getLogger("awnet.http")

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
        self._reader = RequestReader(self, admission.limits.header_bytes)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until the connection is made
        self._arrival = arrival
        self._secure = arrival is not None and arrival.secure
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None

        self._phase = OPENED
        self._since = clock.now()
        self._running: Transaction | None = None
        self._waiting: deque[Transaction] = deque()  # behind it, pipelined
        self._receiving: Transaction | None = None  # the one whose body is read
        self._refusal: AWNetError | None = None  # the last answer, once those before it are out
        self._lingered = 0  # bytes that came after the last answer
        self._final = False  # nothing that comes from now on is read
        self._ended = False  # the client sends nothing more
        self._leaving = False  # the server does

        self._reading = True
        self.write_paused = False
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
            self._lingered += len(data)
            if self._lingered > LINGER_BYTES:
                self._transport.abort()
            return
        if self._final:
            return
        if phase <= IDLE:
            self._phase, self._since = HEAD, clock.now()
        refusal = self._reader.feed(data, phase <= IDLE)
        if refusal is not None:
            self._refuse(refusal)
        self._settle()

    def eof_received(self) -> bool:
        """The client sends nothing more. It may still read, so what it has asked for whole is answered."""
        self._ended = True
        if self._phase == LINGER:
            return False
        receiving = self._receiving
        if self._reader.within_head:
            self._refuse(MalformedRequest("the request is cut"))
        elif receiving is not None and not receiving.complete:
            receiving.fail(MalformedRequest("the body is cut: the client has closed the connection"))
        elif self._running is None:
            return False
        self._final = True
        self._abandon_at(clock.now() + HALF_CLOSED_SECONDS)
        return not self._secure  # TLS as asyncio has it ends both ways at once

    def pause_writing(self) -> None:
        self.write_paused = True
        self._unsent, self._since_sent = self._transport.get_write_buffer_size(), clock.now()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._drained is not None:
            self._drained.set()

    # What the reader tells.

    def begin(self, scope: dict[str, Any], *, keep_alive: bool, expects_continue: bool) -> None:
        """A request: its turn, or its place behind those before it. Raises MalformedRequest."""
        if self._running is not None and len(self._waiting) >= MAX_PIPELINED:
            raise MalformedRequest(f"more than {MAX_PIPELINED} requests wait on this connection")
        scope["server"], scope["client"] = self._server, self._client
        scope["scheme"] = "https" if self._secure else "http"
        keep_alive = keep_alive and not self._leaving
        transaction = Transaction(self, scope, keep_alive=keep_alive, expects_continue=expects_continue)
        transaction.begun = clock.now()
        self._receiving = transaction
        if self._running is None:
            self._start(transaction)
        else:
            self._waiting.append(transaction)
            self._pause_reading()

    def add(self, data: bytes) -> None:
        """More of its body."""
        receiving = self._receiving
        if receiving is None or receiving.answered or receiving.failed:
            return
        if not receiving.add(data):
            self._pause_reading()
        if receiving.received > UNCOUNTED_BYTES:
            count = receiving.received - receiving.counted
            receiving.counted += count
            self._admission.hold(count)

    def finish(self) -> None:
        """It is complete."""
        if self._receiving is not None:
            self._receiving.finish()
            self._receiving = None

    # Requests in their order.

    def _start(self, transaction: Transaction) -> None:
        self._running = transaction
        transaction.task = task = asyncio.get_running_loop().create_task(self._run(transaction))
        self._state.tasks.add(task)

    async def _run(self, transaction: Transaction) -> None:
        try:
            await self._app(transaction.scope, transaction.receive, transaction.send)
        except Exception:  # the application has logged what is wrong
            log.debug("a request has ended with an error", exc_info=True)
        finally:
            self._state.tasks.discard(transaction.task)
            transaction.end()

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
            upcoming.begun = clock.now()
            self._start(upcoming)
            self._settle()
        elif self._refusal is not None:
            self._refuse(self._refusal)
        elif self._ended or self._leaving:
            self._close()
        else:
            self._phase, self._since = HEAD if self._reader.within_head else IDLE, clock.now()
            self.resume_reading()

    def _refuse(self, error: AWNetError) -> None:
        """Answer with `error` once the answers before that are out, and close."""
        self._final = True
        self._reader.end()
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
        self.write(b"%b\r\n%b" % (head, body))
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

    def _abandon_at(self, when: float) -> None:
        if (left := when - clock.now()) > 0:
            asyncio.get_running_loop().call_later(left, self._abandon_at, when)
        else:
            self._abandon()

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
        elif not self._reader.within_head:
            self._transport.close()

    def _close(self) -> None:
        """Close behind the last answer; what the client has sent behind its last request must not reset that."""
        if self._reading and not self._reader.within_head:
            self._transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Close on a client that is still sending: slowly, or it would be reset before it has read its answer."""
        self._phase, self._since, self._lingered = LINGER, clock.now(), 0
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
        while self.write_paused:
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
        return running.received / (clock.now() - running.begun + 0.1)

    def sweep(self, now: float) -> None:
        limits, phase = self._limits, self._phase
        waited = now - self._since
        if self.write_paused:
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
