"""A small real service for the tests of the protocol: the tiny model behind an engine that can be told to misbehave."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort

from server.core import contract
from server.core.engine import OUTPUTS, Engine, Model, Signals, Terms
from server.core.images import ImageInput
from server.http.admin import create_admin
from server.http.app import create_app
from server.monitoring.detection import Monitor
from server.monitoring.metrics import Metrics
from server.service import Fleet, Service
from server.settings import Settings
from tests.server.tiny import publish

T = TypeVar("T")


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


class SmallEngine:
    """Runs each request at once, on the loop's own thread.

    Attributes:
        fault: raised by every request while it is set.
        gate: every request waits while it is closed.
        asked: the terms of each request so far.
        cancelled: requests that were cancelled while they waited.
    """

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.fault: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[Terms] = []
        self.cancelled = 0

    async def start(self) -> None: ...

    async def catalogue(self) -> Mapping[str, tuple[int, ...]]:
        return {
            folder.name: tuple(sorted(int(version.name) for version in folder.iterdir()))
            for folder in self.repository.iterdir()
        }

    async def fingerprint(self) -> object:
        return 0

    async def open(self, name: str, version: int) -> SmallRunner:
        return SmallRunner(self, name, version)

    def waiting(self) -> int:
        return 0

    def up(self) -> bool:
        return True

    async def close(self) -> None: ...


class SmallRunner:
    """One version, in onnxruntime."""

    def __init__(self, engine: SmallEngine, name: str, version: int) -> None:
        data = (engine.repository / name / str(version) / "model.onnx").read_bytes()
        self._engine = engine
        self._session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
        text = self._session.get_modelmeta().custom_metadata_map[contract.METADATA_KEY]
        self.model = Model(name, version, hashlib.sha256(data).hexdigest(), contract.parse(text))

    async def warm(self) -> None: ...

    async def infer(self, inputs: Sequence[ImageInput], terms: Terms = Terms()) -> Signals:  # noqa: B008 - frozen
        self._engine.asked.append(terms)
        if self._engine.fault is not None:
            raise self._engine.fault
        try:
            await self._engine.gate.wait()
        except asyncio.CancelledError:
            self._engine.cancelled += 1
            raise
        size = self.model.contract.preprocessing.size
        images = np.stack([image.pixels(size) for image in inputs])
        logits, p_type, omega = self._session.run(OUTPUTS, {"image": images})
        return Signals(logits, p_type, omega, 0.0, 0.0, 0.0)

    async def close(self) -> None: ...


class Small:
    """A service of versions 1 and 2, started unless told otherwise, and the loop that it lives on."""

    def __init__(self, folder: Path, *, start: bool = True, **settings: Any) -> None:
        for version in ("1", "2"):
            publish(folder, version, seed=int(version))
        self.engine = SmallEngine(folder)
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
        """One exchange over HTTP without a network: status, headers and body. Admin paths go to the admin port."""
        given = {b"content-length": str(len(body)).encode()} | dict(headers or {})
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": list(given.items())}
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        self.run((self.admin if path.startswith("/admin/") else self.app)(scope, receive, send))
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], told, b"".join(message.get("body", b"") for message in sent[1:])

    def close(self) -> None:
        self.runner.close()
