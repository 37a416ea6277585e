"""`python -m server`: serve models over HTTP, and over gRPC and an admin port where they are asked for."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

import uvicorn
from pydantic import ValidationError

from server import requestlog
from server.admin import create_admin
from server.app import create_app
from server.engine import Engine
from server.errors import AWNetError, StartupError
from server.metrics import Metrics
from server.repository import Repository
from server.service import Service
from server.settings import Settings

if TYPE_CHECKING:
    from server.grpc_service import GrpcFront

log = logging.getLogger("awnet")

EXAMPLES = """examples:
  python -m server                                   serve model_repository/awnet on 127.0.0.1:8000
  python -m server --host 0.0.0.0 --port 9000        listen on all addresses
  python -m server --repository /models --version 3  a given version of another repository
  AWNET_MAX_BATCH=8 python -m server                 every option is also a variable

  curl -F image=@picture.png http://127.0.0.1:8000/predict
"""


class Server(uvicorn.Server):
    """uvicorn that goes quietly: on SIGTERM readiness goes off first, and what is in flight is answered.

    SIGINT, or a second signal, skips the time given to balancers. The exit status is 0 after either. SIGHUP looks
    for new versions. The gRPC service and the admin port live and end with it.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._leave_at: float | None = None
        self._grpc: GrpcFront | None = None
        self._admin: _AdminServer | None = None
        self._administering: asyncio.Task[None] | None = None
        service.on_failure = self._fail

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in self.servers:
            for bound in listening.sockets:
                log.info("listening on %s", _url(bound))
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._service.reload_soon)
        try:
            await self._start_others()
        except AWNetError as error:
            log.critical("%s: %s", error.title, error.detail)
            self._service.failure = error
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Begun together, and waited for in `Service.stop`: what they still answer needs the models.
        if self._grpc is not None:
            stopping = asyncio.create_task(self._grpc.stop(self._service.settings.shutdown_seconds))
            self._service.leaving.append(stopping)
        if self._admin is not None and self._administering is not None:
            self._admin.should_exit = True
            self._service.leaving.append(self._administering)
        await super().shutdown(sockets)

    async def _start_others(self) -> None:
        """The gRPC service and the admin port. Raises StartupError where an address cannot be had."""
        settings = self._service.settings
        if settings.admin_port is not None:
            bound = _bind(settings.admin_host, settings.admin_port)
            config = uvicorn.Config(
                create_admin(self._service),
                lifespan="off",
                log_config=None,
                access_log=False,  # `requestlog` writes one line a request
                server_header=False,
                timeout_graceful_shutdown=round(settings.shutdown_seconds),
            )
            self._admin = _AdminServer(config)
            self._administering = asyncio.create_task(self._admin.serve([bound]))
            log.info("admin calls on %s", _url(bound))
        if settings.grpc_port is not None:
            # Imported only here: tritonclient and grpc cost 26 MB.
            from server.grpc_service import GrpcFront

            front = GrpcFront(self._service, settings.host, settings.grpc_port)
            await front.start()
            self._grpc = front

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self._service.draining
        self._service.draining = True
        if sig == signal.SIGTERM and not again:
            self._leave_at = time.monotonic() + self._service.settings.drain_seconds
        elif not again or self.should_exit is False:
            self.should_exit = True
        else:
            self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._leave_at is not None and time.monotonic() >= self._leave_at:
            self.should_exit = True
        return await super().on_tick(counter)

    def _fail(self) -> None:
        self.should_exit = True


class _AdminServer(uvicorn.Server):
    """Beside another server, which has the signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop. Returns the exit status: 0, or 1 if the model cannot be served, 2 for bad settings."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload before there is anything to reload must not kill
    try:
        settings = read_settings(arguments)
    except ValidationError as error:
        for line in error.errors():
            name = ".".join(str(part) for part in line["loc"])
            print(f"setting {name} (AWNET_{name.upper()}): {line['msg']}", file=sys.stderr)
        return 2
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    requestlog.configure(settings.access_log)
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.root.level))

    engine: Engine
    metrics = Metrics(lambda: engine.waiting(), settings.queue_capacity)
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
            access_log=False,  # `requestlog` writes one line a request
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=round(settings.shutdown_seconds),
        ),
        service,
    )
    # What is alive now stays alive; leaving it out of collections keeps their pauses short.
    gc.collect()
    gc.freeze()
    try:
        server.run()
    except SystemExit as error:  # uvicorn's answer to an address that it cannot listen on
        return 1 if error.code else 0
    return 0 if server.started and service.failure is None else 1


def make_engine(settings: Settings, metrics: Metrics) -> Engine:
    """The engine that the settings ask for, not started. Raises StartupError."""
    if settings.engine == "triton":
        # Imported only here: tritonclient and grpc cost 26 MB.
        from server.triton import TritonEngine, parse_metadata

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
    from server.embedded import EmbeddedEngine  # onnxruntime is no part of a front end before Triton

    return EmbeddedEngine(
        Repository(settings.repository, settings.signing_key),
        threads=settings.threads,
        most=settings.max_batch,
        capacity=settings.queue_capacity,
        delay=settings.batch_delay_ms / 1000,
        on_batch=metrics.batch,
    )


def _bind(host: str, port: int) -> socket.socket:
    """A socket that is ours. Raises StartupError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise StartupError(
            f"the admin port {host}:{port} cannot be had ({error.strerror}): name another --admin-port, or 'none'"
        ) from None
    return bound


def _url(bound: Any) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def read_settings(arguments: list[str] | None = None) -> Settings:
    """The settings of `AWNET_*` variables, overruled by `arguments` (default: the command line)."""
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Serve an AW-Net over HTTP. Every option is also a variable: --max-batch is AWNET_MAX_BATCH.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, field in Settings.model_fields.items():
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{field.description} [{field.default}]"}
        if field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            if type(None) in get_args(field.annotation):
                options["type"] = lambda text: None if text == "none" else text
            options["metavar"] = name.rpartition("_")[2].upper()
        parser.add_argument("--" + name.replace("_", "-"), **options)
    return Settings(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
