"""The ports of one process: uvicorn's servers with connections of our own, which start and end together."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ..errors import AWNetError
from ..http.acceptor import Acceptor, Peers
from ..http.admin import create_admin
from ..http.admission import Admission, ConnectionLimits
from ..http.app import create_app
from ..http.arrival import Arrivals
from ..http.connection import Connection
from ..http.front import Front
from ..http.metrics_port import create_metrics
from ..http.pace import Pace
from ..ports.tls import Certificates
from ..service.service import Service
from ..settings.settings import Settings
from ..workers.member import Assignment

if TYPE_CHECKING:
    from ..oip.grpc_front import GrpcFront

TICKS_A_SECOND = 10  # of uvicorn's main loop
LEAVING_MARGIN_SECONDS = 2.0  # after drain and shutdown, before a process that is stuck is ended

log = logging.getLogger("awnet")


class Port(uvicorn.Server):
    """uvicorn's server of one port, with connections of our own.

    Args:
        front: answers the requests.
        listening: the port's sockets, listening.
        certificates: with which it speaks TLS, if it does.
        peers: other processes that accept from these sockets.
    """

    BEHIND_PROXIES = True  # connections of trusted proxies begin with a PROXY header, where that is asked for

    def __init__(
        self,
        front: Front,
        listening: Sequence[socket.socket],
        settings: Settings,
        certificates: Certificates | None = None,
        peers: Peers | None = None,
    ) -> None:
        config = uvicorn.Config(
            front,
            loop="uvloop",
            http=Connection,
            ws="none",
            interface="asgi3",
            lifespan="off",  # `Server` starts and stops the service
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=round(settings.shutdown_seconds),
        )
        super().__init__(config)
        state = self.server_state
        admission = Admission(ConnectionLimits.of(settings), front.proxies)
        arrivals = Arrivals(
            lambda arrival: Connection(front, front.turn_away, admission, state, arrival),
            admission,
            front.proxies if settings.proxy_protocol and self.BEHIND_PROXIES else None,
            certificates,
        )
        pace = Pace(
            settings.connections_per_second,
            settings.connections_per_second_per_client,
            front.proxies,
            front.refused_connection,
        )
        self._acceptor = Acceptor(listening, lambda: len(state.connections), arrivals, peers, pace)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        await self._listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._acceptor.end()
        await super().shutdown([])

    def trouble(self) -> str | None:
        """Why it takes no connections any more, if so."""
        return self._acceptor.trouble()

    async def _listening(self) -> None:
        """The server runs: take connections."""
        self._acceptor.begin()


class Server(Port):
    """A port with a graceful shutdown: SIGTERM turns readiness off first, and requests in flight are answered.

    SIGINT, or a second signal, skips the time given to load balancers. The exit status is 0 after either. SIGHUP
    checks for new versions. The gRPC front end and the other ports start and end with it. The models are loaded while
    the socket answers already, so that liveness is reported at once and readiness once it holds; they are closed last.

    Args:
        sockets: listening, by what the port is for.
    """

    def __init__(
        self,
        service: Service,
        sockets: Mapping[str, Sequence[socket.socket]],
        certificates: Certificates | None = None,
        peers: Peers | None = None,
    ) -> None:
        super().__init__(create_app(service), sockets["public"], service.settings, certificates, peers)
        self._service = service
        self._sockets = sockets
        self._certificates = certificates
        self.ended = threading.Event()
        self._loading: asyncio.Task[None] | None = None
        self._leave_at: float | None = None
        self._grpc: GrpcFront | None = None
        service.ports.add("public", self.trouble)
        self._beside: dict[PortBeside, asyncio.Task[None]] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._service.failure is None:
            self._loading = asyncio.create_task(self._service.start())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.drain()
        leaving = list(self._beside.values())
        for port in self._beside:
            port.should_exit = True
        if self._grpc is not None:
            leaving.append(asyncio.create_task(self._grpc.stop(self._service.settings.shutdown_seconds)))
        await super().shutdown(sockets)
        if self.force_exit:
            self._service.decoding.pool.kill()
            return
        if self._loading is not None:
            leaving.append(self._loading)
        if leaving:
            await asyncio.wait(leaving)
        await self._service.stop()  # last: whatever is still answered needs the models

    async def on_tick(self, counter: int) -> bool:
        left = self._leave_at is not None and time.monotonic() >= self._leave_at
        if left or self._service.failure is not None:
            self.should_exit = True
        if counter % TICKS_A_SECOND == 0:
            self._service.ports.look()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self._service.draining
        self._service.drain()
        if not again:
            settings = self._service.settings
            seconds = settings.drain_seconds + settings.shutdown_seconds
            threading.Thread(target=_end_at_last, args=(seconds, self.ended), daemon=True).start()
        if sig == signal.SIGTERM and not again:
            self._leave_at = time.monotonic() + self._service.settings.drain_seconds
        elif not again or self.should_exit is False:
            self.should_exit = True
        else:
            self.force_exit = True

    async def _listening(self) -> None:
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._service.reload_soon)
        await self._start_others()
        await super()._listening()

    async def _start_others(self, shared: bool = False) -> None:
        """The gRPC service, and the ports for admin calls and for metrics.

        Args:
            shared: other processes of this service have the same ports.
        """
        settings = self._service.settings
        try:
            for purpose, create in (("admin", create_admin), ("metrics", create_metrics)):
                if purpose in self._sockets:
                    sockets = self._sockets[purpose]
                    port = PortBeside(create(self._service), sockets, settings, self._certificates)
                    self._beside[port] = served = asyncio.create_task(port.serve())
                    self._service.ports.add(purpose, partial(_trouble, port, served))
            if settings.grpc_port is not None:
                # Imported only here: tritonclient and grpc cost 26 MB.
                from ..oip.grpc_front import GrpcFront

                front = GrpcFront(self._service, settings.host, settings.grpc_port, shared, self._certificates)
                await front.start()
                self._grpc = front
                self._service.ports.add("gRPC", front.trouble)
        except AWNetError as error:
            self._service.fail(error)


class Worker(Server):
    """One of several servers behind one port. The supervisor owns the sockets and says when to accept connections."""

    def __init__(self, service: Service, assignment: Assignment, certificates: Certificates | None = None) -> None:
        super().__init__(service, assignment.sockets, certificates, assignment.load_table)
        self._assignment = assignment
        self._accepts = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # First, because the supervisor is notified once the models are loaded.
        await self._assignment.member.attach(self._service, self._accept, self._abandoned)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        self._acceptor.post()
        return await super().on_tick(counter)

    async def _listening(self) -> None:
        if self._assignment.member.first:
            await self._accept()

    async def _accept(self) -> None:
        """Take connections from the shared sockets from now on."""
        if self._accepts or self.should_exit:
            return
        self._accepts = True
        await self._start_others(shared=True)
        self._acceptor.begin()

    def _abandoned(self) -> None:
        self.handle_exit(signal.SIGTERM, None)


class PortBeside(Port):
    """A server beside another one, which handles the signals. Proxies have no business there."""

    BEHIND_PROXIES = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _trouble(port: Port, served: asyncio.Task[None]) -> str | None:
    """Why a port beside takes no connections, if so."""
    if not served.done():
        return port.trouble()
    error = None if served.cancelled() else served.exception()
    return f"its server has ended ({type(error).__name__ if error else 'nobody asked it to'})"


def _end_at_last(seconds: float, ended: threading.Event) -> None:
    """End this process after so long, whatever runs in it: a thread that is stuck in a library cannot be ended."""
    if not ended.wait(seconds + LEAVING_MARGIN_SECONDS):
        log.critical("the process has not ended by itself in time, and ends now")
        os._exit(1)
