"""A small real service for the tests of the protocol: the tiny model behind an engine that can be told to misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server.core.engine import Engine, Leisure, Model, Runner, Signals, Terms
from server.core.images import ImageInput
from server.core.modes import Mode
from server.engines.onnxruntime import EmbeddedEngine
from server.engines.repository import Repository
from server.http.admin import create_admin
from server.http.app import create_app
from server.monitoring.detection import Monitor
from server.monitoring.metrics import Metrics
from server.oip.grpc_front import GrpcFront
from server.service.fleet import Fleet
from server.service.service import Service
from server.settings.settings import Settings
from tests.server.tiny import publish

T = TypeVar("T")
NO_DEADLINE = Terms()


def service_over(engine: Engine, fleet: Fleet | None = None, **settings: Any) -> Service:
    """A service over `engine`, as `process.serve` builds it; it polls only where that is asked for."""
    given = Settings(**{"poll_seconds": 0, **settings})
    monitor = Monitor()
    models = [given.model, *given.further_models]
    metrics = Metrics(monitor, given.queue_capacity, models, given.golden_probe_seconds)
    return Service(given, engine, metrics, monitor, fleet)


@asynccontextmanager
async def started(service: Service) -> AsyncIterator[None]:
    """`service` from its start to its end, as `process.Server` has it: loaded while requests come in already."""
    loading = asyncio.create_task(service.start())
    try:
        yield
    finally:
        await loading
        await service.stop()


class AroundEngine:
    """The embedded engine with one thread, for a class that changes a part of it."""

    def __init__(self, repository: Path, key: Path | None = None, **options: Any) -> None:
        self.inner = EmbeddedEngine(Repository(repository, key), **{"threads": 1, **options})

    async def start(self) -> None:
        await self.inner.start()

    async def catalogue(self) -> Mapping[str, tuple[int, ...]]:
        return await self.inner.catalogue()

    async def fingerprint(self) -> object:
        return await self.inner.fingerprint()

    async def open(self, name: str, version: int, leisure: Leisure | None = None) -> Runner:
        return await self.inner.open(name, version, leisure)

    def waiting(self) -> int:
        return self.inner.waiting()

    def up(self) -> bool:
        return self.inner.up()

    async def close(self) -> None:
        await self.inner.close()


class AroundRunner:
    """One version of it."""

    def __init__(self, inner: Runner) -> None:
        self.inner = inner

    @property
    def model(self) -> Model:
        return self.inner.model

    async def warm(self) -> None:
        await self.inner.warm()

    async def infer(self, images: Sequence[ImageInput], terms: Terms = NO_DEADLINE, mode: Mode = "auto") -> Signals:
        return await self.inner.infer(images, terms, mode)

    async def close(self) -> None:
        await self.inner.close()


class GatedEngine(AroundEngine):
    """An engine behind a gate, with faults on demand.

    Attributes:
        fault: raised by every request while it is set. start_fault: raised by `start`.
        gate: every request, and `start`, wait while it is closed.
        reachable: whether it is up.
        spoil: changes every answer while it is set.
        asked: the terms of each request so far.
        cancelled: requests that were cancelled while they waited.
    """

    def __init__(self, repository: Path, **options: Any) -> None:
        super().__init__(repository, **options)
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: Exception | None = None
        self.start_fault: Exception | None = None
        self.spoil: Callable[[Signals], None] | None = None
        self.reachable = True
        self.cancelled = 0
        self.asked: list[Terms] = []

    async def start(self) -> None:
        await self.gate.wait()
        if self.start_fault:
            raise self.start_fault
        await super().start()

    async def open(self, name: str, version: int, leisure: Leisure | None = None) -> Runner:
        return _Gated(self, await super().open(name, version, leisure))

    def up(self) -> bool:
        return self.reachable and super().up()


class _Gated(AroundRunner):
    def __init__(self, engine: GatedEngine, inner: Runner) -> None:
        super().__init__(inner)
        self.engine = engine

    async def infer(self, images: Sequence[ImageInput], terms: Terms = NO_DEADLINE, mode: Mode = "auto") -> Signals:
        self.engine.asked.append(terms)
        try:
            await self.engine.gate.wait()
            if self.engine.fault:
                raise self.engine.fault
            signals = await super().infer(images, terms, mode)
        except asyncio.CancelledError:
            self.engine.cancelled += 1
            raise
        if self.engine.spoil:
            self.engine.spoil(signals)
        return signals


class Small:
    """A service of versions 1 and 2, started unless told otherwise, and the loop that it lives on."""

    def __init__(self, folder: Path, *, start: bool = True, **settings: Any) -> None:
        for version in ("1", "2"):
            publish(folder, version, seed=int(version))
        self.engine = GatedEngine(folder)
        given = {"max_images": 4, "max_pixels": 100_000, "max_body_bytes": 1 << 20, "queue_capacity": 8, **settings}
        self.service = service_over(self.engine, repository=folder, **given)
        self.settings, self.metrics = self.service.settings, self.service.metrics
        self.app: Any = create_app(self.service)
        self.admin: Any = create_admin(self.service)
        self.runner = asyncio.Runner()
        if start:
            self.run(self.service.models.start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def http(
        self, method: str, path: str, headers: Mapping[bytes, bytes] | None = None, body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        """One exchange over HTTP without a network: status, headers and body. Admin paths go to the admin port.

        A query stands after the path, as in an address.
        """
        given = {b"host": b"localhost", b"content-length": str(len(body)).encode()} | dict(headers or {})
        path, _, query = path.partition("?")
        asked = {"method": method, "path": path, "query_string": query.encode()}
        scope = {"type": "http", "headers": list(given.items()), **asked}
        sent: list[Any] = []

        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()  # the client stays

        async def send(message: Any) -> None:
            sent.append(message)

        self.run((self.admin if path.startswith("/admin/") else self.app)(scope, receive, send))
        reply_headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], reply_headers, b"".join(message.get("body", b"") for message in sent[1:])

    def infer(self, message: service_pb2.ModelInferRequest) -> Any:
        """The answer over gRPC, of a server of its own. Raises grpc.aio.AioRpcError."""

        async def call() -> Any:
            front = GrpcFront(self.service, "127.0.0.1", 0)
            port = await front.start()
            try:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    return await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=60)
            finally:
                await front.stop(0)

        return self.run(call())

    def close(self) -> None:
        self.run(self.service.models.close())
        self.runner.close()
