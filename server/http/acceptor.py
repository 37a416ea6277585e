"""Accepts the connections of a port, also where several workers share its sockets and keep their loads even."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from ..ports.listening import listens
from .pace import Pace

log = logging.getLogger("awnet")

SETTLE_SECONDS = 1.0  # at the end, for connections that were taken and say nothing yet
FULL_SECONDS = 1.0  # no connection is taken for this long where there is no descriptor left for one


class Peers(Protocol):
    """The other processes that accept from the same sockets."""

    def post(self, connections: int) -> None:
        """Tell them how many connections this one has."""

    def patience(self, connections: int) -> float:
        """How long to leave a new connection to one that has fewer, seconds."""


class NoPeers:
    """`Peers` of a process that has its sockets to itself."""

    def post(self, connections: int) -> None:
        """Nobody asks."""

    def patience(self, connections: int) -> float:
        return 0.0


class Acceptor:
    """Accepts one connection at a time, and leaves it to another process while that one has fewer.

    A connection stays with its process, and with it the client's load. Where the process has no descriptor left, that
    is said once, and connections wait in the kernel until there is one again.

    Args:
        listening: the sockets, non-blocking; closed at the end.
        open_connections: how many this process has, without those that are being set up.
        arrive: sets a new connection up.
        peers: of this process, if it has any.
        pace: of new connections; None: as they come.
    """

    def __init__(
        self,
        listening: Sequence[socket.socket],
        open_connections: Callable[[], int],
        arrive: Callable[[socket.socket], Coroutine[Any, Any, None]],
        peers: Peers | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace
        self._listening = listening
        self._open_connections = open_connections
        self._arrive = arrive
        self._peers = peers or NoPeers()
        self._taken: set[asyncio.Task[Any]] = set()
        self._begun = False
        self._full = False

    def begin(self) -> None:
        """Take connections from now on."""
        self._begun = True
        for listening in self._listening:
            self._listen(listening)

    async def end(self) -> None:
        """Take none any more; those that were taken are set up, or closed where they are not soon."""
        self._begun = False
        for listening in self._listening:
            if listening.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(listening.fileno())
                listening.close()
        if self._taken:
            await asyncio.wait(self._taken, timeout=SETTLE_SECONDS)
        for task in self._taken:
            task.cancel()

    def trouble(self) -> str | None:
        """Why no connection can come any more; None where one can, or will."""
        return None if all(map(listens, self._listening)) else "its socket does not listen"

    def post(self) -> None:
        """Tell the other processes how many connections this one has, once it takes any."""
        if self._begun:
            self._peers.post(self._held())

    def _held(self) -> int:
        return self._open_connections() + len(self._taken)

    def _listen(self, listening: socket.socket) -> None:
        if self._begun:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._offered, listening)

    def _offered(self, listening: socket.socket) -> None:
        """A client wants to connect. All processes are notified; the first to accept has it."""
        patience = self._peers.patience(self._held())
        if patience:
            # Not for long: the other one may be stuck.
            loop = asyncio.get_running_loop()
            loop.remove_reader(listening.fileno())
            loop.call_later(patience, self._take_late, listening)
        else:
            self._take(listening)

    def _take_late(self, listening: socket.socket) -> None:
        if self._begun:
            self._listen(listening)
            self._take(listening)

    def _take(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection, address = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process has it
        except OSError as error:
            if not self._full:
                log.error("no connection can be taken (%s); new ones wait until one can", error)
            self._full = True
            loop.remove_reader(listening.fileno())
            loop.call_later(FULL_SECONDS, self._listen, listening)
            return
        if self._full:
            self._full = False
            log.warning("connections are taken again")
        wait = 0.0 if self._pace is None else self._pace.wait(str(address[0]))
        if wait is None:
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = loop.create_task(self._arrive_later(wait, connection) if wait else self._arrive(connection))
        self._taken.add(task)
        task.add_done_callback(self._set_up)
        self.post()

    async def _arrive_later(self, seconds: float, connection: socket.socket) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            connection.close()
            raise
        await self._arrive(connection)

    def _set_up(self, task: asyncio.Task[Any]) -> None:
        self._taken.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("a connection was lost at once: %s", error)
