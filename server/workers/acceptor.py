"""Accepts connections of sockets that all workers share, so that their loads stay even."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from .load_table import LoadTable

log = logging.getLogger("awnet")

FULL_SECONDS = 1.0  # no connection is taken for this long where there is no descriptor left for one


class Acceptor:
    """Accepts one connection at a time, and leaves it to another worker while that one has fewer.

    A connection stays with its worker, and with it the client's load.

    Args:
        listening: the shared sockets; closed at the end.
        load_table: how many connections each worker has.
        open_connections: how many this worker has, without those that are being set up.
        protocol: makes the protocol of a new connection.
    """

    def __init__(
        self,
        listening: Sequence[socket.socket],
        load_table: LoadTable,
        open_connections: Callable[[], int],
        protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        self._listening = listening
        self._load_table = load_table
        self._open_connections = open_connections
        self._protocol = protocol
        self._taken: set[asyncio.Task[Any]] = set()
        self._begun = False

    def begin(self) -> None:
        """Take connections from now on."""
        self._begun = True
        for listening in self._listening:
            self._listen(listening)

    async def end(self) -> None:
        """Take none any more; those that were taken are set up."""
        self._begun = False
        for listening in self._listening:
            asyncio.get_running_loop().remove_reader(listening.fileno())
            listening.close()
        if self._taken:
            await asyncio.wait(self._taken)

    def post(self) -> None:
        """Tell the other workers how many connections this one has, once it takes any."""
        if self._begun:
            self._load_table.post(self._held())

    def _held(self) -> int:
        return self._open_connections() + len(self._taken)

    def _listen(self, listening: socket.socket) -> None:
        if self._begun:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._offered, listening)

    def _offered(self, listening: socket.socket) -> None:
        """A client wants to connect. All workers are notified; the first to accept has it."""
        patience = self._load_table.patience(self._held())
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
            connection, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker has it
        except OSError as error:
            log.error("no connection can be taken: %s", error)
            loop.remove_reader(listening.fileno())
            loop.call_later(FULL_SECONDS, self._listen, listening)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
        self._taken.add(task)
        task.add_done_callback(self._set_up)
        self.post()

    def _set_up(self, task: asyncio.Task[Any]) -> None:
        self._taken.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("a connection was lost at once: %s", error)
