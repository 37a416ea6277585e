"""`python -m server`: serve a model over HTTP."""

from __future__ import annotations

import argparse
import gc
import logging
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any

import uvicorn
from pydantic import ValidationError

from server.app import Service, create_app
from server.embedded import EmbeddedEngine
from server.metrics import Metrics
from server.settings import Settings

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

    SIGINT, or a second signal, skips the time given to balancers. The exit status is 0 after either.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._leave_at: float | None = None
        service.on_failure = self._fail

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in self.servers:
            for bound in listening.sockets:
                host, port = bound.getsockname()[:2]
                log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)

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


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop. Returns the exit status: 0, or 1 if the model cannot be served, 2 for bad settings."""
    try:
        settings = read_settings(arguments)
    except ValidationError as error:
        for line in error.errors():
            name = ".".join(str(part) for part in line["loc"])
            print(f"setting {name} (AWNET_{name.upper()}): {line['msg']}", file=sys.stderr)
        return 2
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.root.level))

    engine: EmbeddedEngine
    metrics = Metrics(lambda: engine.waiting(), settings.queue_capacity)
    engine = EmbeddedEngine(
        settings.repository,
        settings.model,
        settings.version,
        threads=settings.threads,
        most=settings.max_batch,
        capacity=settings.queue_capacity,
        on_batch=metrics.batch,
    )
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
            access_log=settings.access_log,
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
            options["metavar"] = name.rpartition("_")[2].upper()
        parser.add_argument("--" + name.replace("_", "-"), **options)
    return Settings(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
