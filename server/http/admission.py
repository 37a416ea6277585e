"""Which connections a port keeps: how many in all and of one client, how long, and with how much of unanswered bodies.

A port that is full makes room: the connection that has waited longest without a whole request is closed, of the
client that has most. Only where all are being answered is a new one refused. So whoever opens many loses their own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from ..access.addresses import TrustedProxies, client_of
from ..core import clock
from ..errors import AWNetError, TooManyConnections, TooManyConnectionsOfClient, UploadsFull
from ..settings.settings import Settings

SWEEP_SECONDS = 0.25  # how exact deadlines are
UNCOUNTED_BYTES = 64 << 10  # of each body: a small request is never refused for what large ones hold
LINGER, OPENED, IDLE, HEAD, BODY, BUSY = range(6)  # what a connection waits for, least to lose first
SPARE = 64  # connections over the limit that are told why they are refused; more are closed without a word


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one port allows.

    Attributes:
        connections: open at a time.
        connections_per_client: of them, of one IPv4 address or IPv6 /64; 0 is no limit.
        held_bytes: of bodies whose answers are not out.
        header_bytes: request line and headers.
        header_seconds: for the first byte of a connection, and from a request's first byte to the end of its headers.
        body_seconds, body_bytes_per_second: a body has that long, and longer by its size at that rate.
        keep_alive_seconds: from an answer to the next request.
    """

    connections: int
    connections_per_client: int
    held_bytes: int
    header_bytes: int
    header_seconds: float
    body_seconds: float
    body_bytes_per_second: int
    keep_alive_seconds: float

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        return cls(
            connections=settings.max_connections,
            connections_per_client=settings.max_connections_per_client,
            held_bytes=settings.max_held_bytes,
            header_bytes=settings.max_header_bytes,
            header_seconds=settings.header_seconds,
            body_seconds=settings.body_seconds,
            body_bytes_per_second=settings.min_body_bytes_per_second,
            keep_alive_seconds=settings.keep_alive_seconds,
        )


class Admitted(Protocol):
    """A connection, as `Admission` sees it."""

    @property
    def waiting(self) -> tuple[int, float] | None:
        """What it waits for, less to lose first, and since when; None while a whole request is being answered."""

    @property
    def upload_rate(self) -> float | None:
        """Bytes a second of its unfinished body, where bytes of that are counted."""

    def sweep(self, now: float) -> None:
        """Close it where it is overdue."""

    def make_room(self) -> None:
        """Close it: another one is wanted more."""

    def give_up(self, error: AWNetError) -> None:
        """Answer its unfinished body with `error`."""


class Admission:
    """The connections of one port and what they hold; used on the event loop's thread.

    Args:
        proxies: their connections are many clients', so that the bound of one client is not theirs.

    Attributes:
        held: counted bytes of bodies.
    """

    def __init__(self, limits: ConnectionLimits, proxies: TrustedProxies | None = None) -> None:
        self.limits = limits
        self._proxies = proxies or TrustedProxies()
        self.held = 0
        self._of: dict[Admitted, str] = {}
        self._by_client: dict[str, dict[Admitted, None]] = {}
        self._sweeping = False

    def __len__(self) -> int:
        return len(self._of)

    def enter(self, connection: Admitted, address: str) -> AWNetError | None:
        """A connection that was made. Returns why it must be refused, if it must.

        Args:
            address: of the client.
        """
        limits, client = self.limits, client_of(address)
        theirs = self._by_client.get(client, {})
        most = 0 if self._proxies and self._proxies.trusts(address) else limits.connections_per_client
        refusal: AWNetError | None = None
        while most and len(theirs) >= most and refusal is None:
            if not _close_one(theirs):
                refusal = TooManyConnectionsOfClient("this client has as many connections as one may have")
        while len(self._of) >= limits.connections and refusal is None:
            if not _close_one(max(self._by_client.values(), key=len)) and not _close_one(self._of):
                refusal = TooManyConnections("there are as many connections as are allowed")
        self._of[connection] = client
        self._by_client.setdefault(client, {})[connection] = None
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        return refusal

    def crowded(self) -> bool:
        """There are so many over the limit that no more is said to further ones."""
        return len(self._of) > self.limits.connections + SPARE

    def leave(self, connection: Admitted) -> None:
        """It is closed."""
        client = self._of.pop(connection, None)
        if client is not None:
            theirs = self._by_client[client]
            del theirs[connection]
            if not theirs:
                del self._by_client[client]

    def hold(self, count: int) -> None:
        """So many more bytes of bodies, or fewer. Where that is too much, the slowest upload is given up."""
        self.held += count
        while self.held > self.limits.held_bytes:
            uploads = [(rate, n, one) for n, one in enumerate(self._of) if (rate := one.upload_rate) is not None]
            if not uploads:
                return
            min(uploads)[2].give_up(UploadsFull("unfinished requests hold as many bytes as are allowed"))

    def _sweep(self) -> None:
        now = clock.now()
        for connection in tuple(self._of):
            connection.sweep(now)
        self._sweeping = bool(self._of)
        if self._sweeping:
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)


def _close_one(connections: dict[Admitted, str] | dict[Admitted, None]) -> bool:
    """Close the one that has waited longest; False where none waits."""
    waiting = [(since, n, one) for n, one in enumerate(connections) if (since := one.waiting) is not None]
    if waiting:
        min(waiting)[2].make_room()
    return bool(waiting)
