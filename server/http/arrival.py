"""What comes before the first request of a connection: a PROXY header, and TLS.

Both are awaited on the bare socket, counted among the connections of the port and of the client, and bounded by the
deadline of a header: whoever is silent costs a descriptor and no buffers of TLS. A port without either skips all this.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..access.addresses import TrustedProxies
from ..core import clock
from ..errors import AWNetError, MalformedRequest
from ..ports.tls import Certificates
from . import proxy_header
from .admission import OPENED, Admission

HANDSHAKE = 0x16  # the first byte of a TLS connection
SHUTDOWN_SECONDS = 2.0  # for a client to answer the end of TLS


class Arrival:
    """A connection before its first request.

    Attributes:
        client: address and port, where a proxy named them.
        secure: it speaks TLS.
        refusal: what it is answered with, whatever it asks.
    """

    def __init__(self, admission: Admission, secure: bool) -> None:
        self.client: tuple[str, int] | None = None
        self.secure = secure
        self.refusal: AWNetError | None = None
        self._admission = admission
        self._task = asyncio.current_task()
        self._since = clock.now()

    def done(self) -> None:
        """The connection itself is counted from now on, or is closed."""
        self._admission.leave(self)
        self._task = None

    # What `Admission` asks.

    @property
    def waiting(self) -> tuple[int, float] | None:
        return OPENED, self._since

    @property
    def upload_rate(self) -> float | None:
        return None

    def sweep(self, now: float) -> None:
        if now - self._since > self._admission.limits.header_seconds:
            self.make_room()

    def make_room(self) -> None:
        task = self._task
        self.done()
        if task is not None:
            task.cancel()

    def give_up(self, error: AWNetError) -> None:
        """It holds nothing of a body."""


class Arrivals:
    """Takes accepted sockets of one port to their protocol.

    Args:
        protocol: makes that of a connection; given None where nothing came before it.
        admission: of the port.
        proxies: whose connections begin with a PROXY header; None: nobody's do.
        certificates: None where the port does not speak TLS.
    """

    def __init__(
        self,
        protocol: Callable[[Arrival | None], asyncio.Protocol],
        admission: Admission,
        proxies: TrustedProxies | None,
        certificates: Certificates | None,
    ) -> None:
        self._protocol = protocol
        self._admission = admission
        self._proxies = proxies
        self._certificates = certificates

    async def __call__(self, connection: socket.socket) -> None:
        """Set `connection` up; closes it where it does not come so far."""
        if self._certificates is None and self._proxies is None:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self._protocol(None), connection)
            return
        arrival = Arrival(self._admission, self._certificates is not None)
        handed_over = False
        try:
            peer = str(connection.getpeername()[0])
            if self._admission.enter(arrival, peer) is not None:
                return  # nobody could be told before the handshake
            if self._proxies is not None and self._proxies.trusts(peer):
                source = await _proxy_header(connection)
                if source is not None:
                    arrival.client = source
                    arrival.done()
                    # Over plain HTTP the connection itself says why it is refused.
                    if self._admission.enter(arrival, source.host) is not None and arrival.secure:
                        return
            certificate = None if self._certificates is None else self._certificates.current
            if certificate is not None and (await _peek(connection, 1))[0] != HANDSHAKE:
                certificate, arrival.secure = None, False
                arrival.refusal = MalformedRequest("this port speaks TLS: its address begins with https://")
            handed_over = True
            tls: dict[str, Any] = {}
            if certificate is not None:
                seconds = self._admission.limits.header_seconds
                tls = {
                    "ssl": certificate.context,
                    "ssl_handshake_timeout": seconds,
                    "ssl_shutdown_timeout": SHUTDOWN_SECONDS,
                }
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: self._protocol(arrival), connection, **tls)
        except (proxy_header.MalformedHeaderError, EOFError):
            return
        finally:
            arrival.done()
            if not handed_over:
                connection.close()


async def _proxy_header(connection: socket.socket) -> proxy_header.Source | None:
    """Reads the header and not a byte of what follows it. Raises MalformedHeaderError, EOFError, OSError."""
    header = b""
    while (length := proxy_header.length_of(header)) is None or len(header) < length:
        seen = await _peek(connection, proxy_header.MAX_BYTES)
        # Where the length is not known yet, all that has come is of the header.
        length = proxy_header.length_of(header + seen)
        header += connection.recv(len(seen) if length is None else min(len(seen), length - len(header)))
    return proxy_header.parse(header)


async def _peek(connection: socket.socket, count: int) -> bytes:
    """What has come, `count` bytes at most, which stay to be read. Raises EOFError, OSError."""
    loop, number = asyncio.get_running_loop(), connection.fileno()
    while True:
        waiter = loop.create_future()
        loop.add_reader(number, _wake, waiter)
        try:
            await waiter
        finally:
            loop.remove_reader(number)
        with suppress(BlockingIOError, InterruptedError):
            seen = connection.recv(count, socket.MSG_PEEK)
            if not seen:
                raise EOFError
            return seen


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
