"""One process that serves: uvicorn with its signals, and every front end beside it.

`python -m server` calls `serve`; where there are several workers, the supervisor starts each as
`python -m server.process FD`, with a socket to itself under that number.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from .core.engine import Engine
from .engines.repository import Repository
from .errors import AWNetError
from .http.admin import create_admin
from .http.app import create_app
from .monitoring import request_log
from .monitoring.clients import TopClients
from .monitoring.metrics import Metrics
from .service import Service
from .settings import Settings
from .workers.member import Member, received
from .workers.sockets import Board, bind, url

if TYPE_CHECKING:
    from .oip.grpc_front import GrpcFront

log = logging.getLogger("awnet")

FULL_SECONDS = 1.0  # no connection is taken for this long where there is no descriptor left for one


class Shared:
    """What a worker has from its supervisor: listening sockets, and the board on which workers compare their load."""

    def __init__(self, listening: Sequence[socket.socket], admin: Sequence[socket.socket], board: Board) -> None:
        self.listening = listening
        self.admin = admin
        self.board = board


class Server(uvicorn.Server):
    """uvicorn that goes quietly: on SIGTERM readiness goes off first, and what is in flight is answered.

    SIGINT, or a second signal, skips the time given to balancers. The exit status is 0 after either. SIGHUP looks
    for new versions. The gRPC service and the admin port live and end with it.

    As a worker it shares its sockets with others. It then takes one connection at a time, and leaves it to another
    worker while that one has fewer: a caller's connection stays where it is, and with it the caller's load.
    """

    def __init__(
        self, config: uvicorn.Config, service: Service, member: Member | None = None, shared: Shared | None = None
    ) -> None:
        super().__init__(config)
        self._service = service
        self._member = member
        self._shared = shared
        self._accepting = False
        self._taken: set[asyncio.Task[Any]] = set()
        self._leave_at: float | None = None
        self._grpc: GrpcFront | None = None
        self._admin: _AdminServer | None = None
        self._administering: asyncio.Task[None] | None = None
        service.on_failure = self._fail

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._member is not None:
            # Before the models are loaded, which begins with the start below and ends with a word to the supervisor.
            await self._member.attach(self._service, self._accept, self._abandoned)
            self._service.member = self._member
        await super().startup(sockets if self._shared is None else [])
        if self._shared is None:
            for listening in self.servers:
                for bound in listening.sockets:
                    log.info("listening on %s", url(bound))
            if hasattr(signal, "SIGHUP"):
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._service.reload_soon)
            await self._begin()
        elif self._member is not None and self._member.first:
            await self._accept()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Begun together, and waited for in `Service.stop`: what they still answer needs the models.
        if self._grpc is not None:
            stopping = asyncio.create_task(self._grpc.stop(self._service.settings.shutdown_seconds))
            self._service.leaving.append(stopping)
        if self._admin is not None and self._administering is not None:
            self._admin.should_exit = True
            self._service.leaving.append(self._administering)
        if self._shared is not None:
            loop = asyncio.get_running_loop()
            self._accepting = False
            for listening in self._shared.listening:
                loop.remove_reader(listening.fileno())
                listening.close()
            if self._taken:
                await asyncio.wait(self._taken)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if self._leave_at is not None and time.monotonic() >= self._leave_at:
            self.should_exit = True
        if self._accepting and self._shared is not None:
            self._shared.board.post(len(self.server_state.connections))
        return await super().on_tick(counter)

    async def _begin(self) -> None:
        try:
            await self._start_others()
        except AWNetError as error:
            log.critical("%s: %s", error.title, error.detail)
            self._service.failure = error
            self.should_exit = True

    async def _start_others(self) -> None:
        """The gRPC service and the admin port. Raises StartupError where an address cannot be had."""
        settings = self._service.settings
        if settings.admin_port is not None:
            if self._shared is None:
                sockets = bind(settings.admin_host, settings.admin_port, "--admin-port")
                log.info("admin calls on %s", url(sockets[0]))
            else:
                sockets = list(self._shared.admin)
            config = uvicorn.Config(
                create_admin(self._service),
                lifespan="off",
                log_config=None,
                access_log=False,  # `request_log` writes one line a request
                server_header=False,
                timeout_graceful_shutdown=round(settings.shutdown_seconds),
            )
            self._admin = _AdminServer(config)
            self._administering = asyncio.create_task(self._admin.serve(sockets))
        if settings.grpc_port is not None:
            # Imported only here: tritonclient and grpc cost 26 MB.
            from .oip.grpc_front import GrpcFront

            front = GrpcFront(self._service, settings.host, settings.grpc_port, shared=self._shared is not None)
            await front.start()
            self._grpc = front

    # A worker's connections.

    async def _accept(self) -> None:
        """Take connections from the shared sockets from now on."""
        if self._accepting or self._shared is None or self.should_exit:
            return
        self._accepting = True
        await self._begin()
        for listening in self._shared.listening:
            self._watch(listening)

    def _watch(self, listening: socket.socket) -> None:
        if self._accepting:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._offered, listening)

    def _offered(self, listening: socket.socket) -> None:
        """Somebody wants to connect. The others are told of it as well; who takes it first has it."""
        assert self._shared is not None
        loop = asyncio.get_running_loop()
        held = len(self.server_state.connections) + len(self._taken)
        patience = self._shared.board.patience(held)
        if patience:
            # Not for long: the other one may be stuck.
            loop.remove_reader(listening.fileno())
            loop.call_later(patience, self._take, listening)
        else:
            self._take_one(listening)

    def _take(self, listening: socket.socket) -> None:
        if self._accepting:
            self._watch(listening)
            self._take_one(listening)

    def _take_one(self, listening: socket.socket) -> None:
        assert self._shared is not None
        loop = asyncio.get_running_loop()
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker has it
        except OSError as error:
            log.error("no connection can be taken: %s", error)
            loop.remove_reader(listening.fileno())
            loop.call_later(FULL_SECONDS, self._watch, listening)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
        self._taken.add(task)
        task.add_done_callback(self._settled)
        self._shared.board.post(len(self.server_state.connections) + len(self._taken))

    def _settled(self, task: asyncio.Task[Any]) -> None:
        self._taken.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("a connection was lost at once: %s", error)

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        made: asyncio.Protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=None
        )
        return made

    # The end.

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self._service.draining
        self._service.draining = True
        if sig == signal.SIGTERM and not again:
            self._leave_at = time.monotonic() + self._service.settings.drain_seconds
        elif not again or self.should_exit is False:
            self.should_exit = True
        else:
            self.force_exit = True

    def _abandoned(self) -> None:
        self.handle_exit(signal.SIGTERM, None)

    def _fail(self) -> None:
        self.should_exit = True


class _AdminServer(uvicorn.Server):
    """Beside another server, which has the signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    settings: Settings, member: Member | None = None, shared: Shared | None = None, salt: bytes | None = None
) -> int:
    """Serve until told to stop, as the only process or as one of several. Returns the exit status.

    Args:
        salt: of the senders' names, shared by the workers of one service.
    """
    begin_logging(settings, member.number if member is not None else None)
    engine: Engine
    metrics = Metrics(lambda: engine.waiting(), settings.queue_capacity)
    if salt is not None:
        metrics.monitor.clients = TopClients(salt=salt)
    try:
        engine = make_engine(settings, metrics)
    except AWNetError as error:
        log.critical("%s: %s", error.title, error.detail)
        return 1
    app = create_app(settings, engine, metrics)
    service: Service = app.state.service
    server = Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,  # `request_log` writes one line a request
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=round(settings.shutdown_seconds),
        ),
        service,
        member,
        shared,
    )
    # What is alive now stays alive; leaving it out of collections keeps their pauses short.
    gc.collect()
    gc.freeze()
    try:
        server.run()
    except SystemExit as error:  # uvicorn's answer to an address that it cannot listen on
        return 1 if error.code else 0
    return 0 if server.started and service.failure is None else 1


def begin_logging(settings: Settings, number: int | None = None) -> None:
    """Log to standard error; a worker's lines name it."""
    who = "%(name)s" if number is None else f"worker {number} %(name)s"
    logging.basicConfig(level=settings.log_level.upper(), format=f"%(asctime)s %(levelname)s {who}: %(message)s")
    request_log.configure(settings.access_log)
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.root.level))


def make_engine(settings: Settings, metrics: Metrics) -> Engine:
    """The engine that the settings ask for, not started. Raises StartupError."""
    if settings.engine == "triton":
        # Imported only here: tritonclient and grpc cost 26 MB.
        from .engines.triton.engine import TritonEngine, parse_metadata

        return TritonEngine(
            [url.strip() for url in settings.triton_urls.split(",") if url.strip()],
            tls=settings.triton_tls,
            ca=settings.triton_ca,
            metadata=parse_metadata(settings.triton_metadata),
            in_flight=settings.triton_in_flight,
            failures=settings.breaker_failures,
            probe_seconds=settings.breaker_seconds,
            silence_seconds=settings.triton_silence_seconds,
            decode_threads=settings.threads,
            capacity=settings.queue_capacity,
            on_state=metrics.backend,
        )
    from .engines.onnxruntime import EmbeddedEngine  # onnxruntime is no part of a front end before Triton

    return EmbeddedEngine(
        Repository(settings.repository, settings.signing_key),
        threads=settings.threads,
        most=settings.max_batch,
        capacity=settings.queue_capacity,
        delay=settings.batch_delay_ms / 1000,
        on_batch=metrics.batch,
    )


def work(descriptor: int) -> int:
    """Serve as a worker of the supervisor behind this descriptor. Returns the exit status."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor passes reloads on in its own way
    connected = socket.socket(fileno=descriptor)
    try:
        told = received(connected)
    except EOFError:
        return 1
    shared = Shared(
        [socket.socket(fileno=number) for number in told["listening"]],
        [socket.socket(fileno=number) for number in told["admin"]],
        Board(told["board"], told["workers"], told["number"]),
    )
    member = Member(connected, told["number"], told["first"])
    return serve(Settings(**told["settings"]), member, shared, bytes.fromhex(told["salt"]))


if __name__ == "__main__":
    sys.exit(work(int(sys.argv[1])))
