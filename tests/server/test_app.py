"""The application over engines that are slow, that fail or that are wrong: what a caller sees of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from server.app import Service, create_app
from server.embedded import EmbeddedEngine
from server.engine import Model, Signals
from server.errors import AWNetError, EngineFault, StartupError, problem, status_of
from server.images import Picture
from server.settings import Settings
from tests.server.tiny import encoded, noise, plain, publish

PNG = encoded(noise())


class Engine:
    """The embedded engine behind a gate, with faults on demand."""

    def __init__(self, repository: Path, **options: Any) -> None:
        self.inner = EmbeddedEngine(repository, **{"threads": 1, **options})
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: Exception | None = None
        self.start_fault: Exception | None = None
        self.spoil: Callable[[Signals], None] | None = None

    async def start(self) -> Model:
        await self.gate.wait()
        if self.start_fault:
            raise self.start_fault
        return await self.inner.start()

    async def infer(self, pictures: Sequence[Picture]) -> Signals:
        await self.gate.wait()
        if self.fault:
            raise self.fault
        signals = await self.inner.infer(pictures)
        if self.spoil:
            self.spoil(signals)
        return signals

    def waiting(self) -> int:
        return self.inner.waiting()

    async def close(self) -> None:
        await self.inner.close()


@asynccontextmanager
async def client(engine: Any, **settings: Any) -> Any:
    app = create_app(Settings(**settings), engine)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            http.service = app.state.service  # type: ignore[attr-defined]
            yield http


async def until_ready(http: httpx.AsyncClient) -> None:
    for _ in range(1000):
        if (await http.get("/v2/health/ready")).status_code == 200:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never became ready")


def ask(http: httpx.AsyncClient, data: bytes = PNG) -> Awaitable[httpx.Response]:
    return http.post("/predict", content=data, headers={"content-type": "image/png"})


def run(scenario: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_the_server_is_live_before_it_is_ready(repository: Path) -> None:
    """While the model loads, liveness is 200, readiness 503, and a prediction is to be tried again."""

    async def scenario() -> None:
        engine = Engine(repository)
        engine.gate.clear()
        async with client(engine) as http:
            assert (await http.get("/v2/health/live")).status_code == 200
            assert (await http.get("/v2/health/ready")).status_code == 503
            answer = await ask(http)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["type"] == "urn:awnet:problem:not-ready"
            assert "awnet_engine_up 0.0" in (await http.get("/metrics")).text
            engine.gate.set()
            await until_ready(http)
            assert (await ask(http)).status_code == 200
            assert "awnet_engine_up 1.0" in (await http.get("/metrics")).text

    run(scenario)


def spoiled_golden(contract: dict[str, Any]) -> None:
    from tests.server.tiny import tensor

    contract["golden"]["p_type"] = tensor(np.full((3, 2), 0.5, np.float32))


def test_a_model_whose_golden_values_do_not_come_out_is_never_ready(tmp_path: Path) -> None:
    """It loads and would answer 200 with wrong numbers."""

    async def scenario() -> None:
        told: list[str] = []
        engine = EmbeddedEngine(publish(tmp_path, change=spoiled_golden), threads=1)
        app = create_app(Settings(), engine)
        service: Service = app.state.service
        service.on_failure = lambda: told.append("failed")
        caller = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")
        async with app.router.lifespan_context(app), caller as http:
            while not told:
                await asyncio.sleep(0.01)
            assert (await http.get("/v2/health/ready")).status_code == 503
            assert (await ask(http)).status_code == 503
        assert service.failure is not None
        assert "golden p_type" in service.failure.detail

    run(scenario)


def test_a_start_that_fails_in_an_unforeseen_way_is_told_as_well(repository: Path) -> None:
    """Whoever runs the server hears of it; nobody waits for ever."""

    async def scenario() -> None:
        engine = Engine(repository)
        engine.start_fault = OSError("disk on fire")
        async with client(engine) as http:
            await asyncio.sleep(0.05)
            assert http.service.failure is not None
            assert (await http.get("/v2/health/ready")).status_code == 503

    run(scenario)


def test_a_full_queue_is_503_with_retry_after(repository: Path) -> None:
    """Those who were let in are answered, the rest at once refused, and it is counted."""

    async def scenario() -> None:
        engine = EmbeddedEngine(repository, threads=1, capacity=1)
        async with client(engine, queue_capacity=1, retry_after_seconds=7) as http:
            await until_ready(http)
            answers = await asyncio.gather(*[ask(http) for _ in range(20)])
            refused = [a for a in answers if a.status_code == 503]
            assert {a.status_code for a in answers} == {200, 503}
            assert {a.headers["retry-after"] for a in refused} == {"7"}
            assert {a.json()["type"] for a in refused} == {"urn:awnet:problem:queue-full"}
            text = (await http.get("/metrics")).text
            assert f'awnet_rejections_total{{reason="queue-full"}} {len(refused)}.0' in text
            assert (await ask(http)).status_code == 200

    run(scenario)


def test_an_engine_that_fails_is_503_and_says_nothing_about_itself(repository: Path) -> None:
    """A prediction failed; its reason is in the log."""

    async def scenario() -> None:
        engine = Engine(repository)
        async with client(engine) as http:
            await until_ready(http)
            engine.fault = EngineFault("the model failed on this request")
            answer = await ask(http)
            assert answer.status_code == 503
            assert answer.json()["type"] == "urn:awnet:problem:engine-fault"

    run(scenario)


def test_an_unforeseen_error_is_a_500_without_its_trace(repository: Path) -> None:
    """The caller gets the request id, the log gets the rest."""

    async def scenario() -> None:
        engine = Engine(repository)
        async with client(engine) as http:
            await until_ready(http)
            engine.fault = RuntimeError("secret path /etc")
            answer = await ask(http)
            assert answer.status_code == 500
            assert answer.headers["content-type"] == "application/problem+json"
            assert "secret" not in answer.text
            assert answer.json()["request_id"] == answer.headers["x-request-id"]
            engine.fault = None
            assert (await ask(http)).status_code == 200

    run(scenario)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["logits", "p_type", "omega"])
def test_an_answer_that_is_not_finite_is_a_fault_and_never_clean(repository: Path, name: str, value: float) -> None:
    """NaN is over no threshold."""

    async def scenario() -> None:
        engine = Engine(repository)
        async with client(engine) as http:
            await until_ready(http)

            def spoil(signals: Signals) -> None:
                spoiled = getattr(signals, name).copy()
                spoiled[0, 0] = value
                object.__setattr__(signals, name, spoiled)

            engine.spoil = spoil
            answer = await ask(http, encoded(plain(0.1)))
            assert answer.status_code == 503
            assert "clean" not in answer.text

    run(scenario)


def test_draining_takes_readiness_off_and_answers_on(repository: Path) -> None:
    """Balancers look away, connections are given up one by one, nobody is turned down."""

    async def scenario() -> None:
        async with client(Engine(repository)) as http:
            await until_ready(http)
            assert "connection" not in (await ask(http)).headers
            http.service.draining = True
            assert (await http.get("/v2/health/ready")).status_code == 503
            assert (await http.get("/v2/health/live")).status_code == 200
            answer = await ask(http)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")

    run(scenario)


def test_every_error_has_a_status_and_a_name_of_its_own() -> None:
    """One table, no class forgotten, no two problems with the same type."""

    def below(kind: type[AWNetError]) -> list[type[AWNetError]]:
        return [kind, *(k for sub in kind.__subclasses__() for k in below(sub))]

    kinds = below(AWNetError)
    assert len({kind.slug for kind in kinds}) == len(kinds)
    for kind in kinds:
        status = status_of(kind("detail"))
        assert status == 500 if issubclass(kind, StartupError) or kind is AWNetError else 400 <= status <= 503
        assert problem(kind("detail"), "id")["status"] == status


def test_settings_come_from_the_environment_and_wrong_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWNET_ before each name; a value that makes no sense stops the start."""
    for name in [name for name in os.environ if name.startswith("AWNET_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWNET_PORT", "9000")
    monkeypatch.setenv("AWNET_DATA_DIR", "/data")  # the tests' own, none of the server's
    assert Settings().port == 9000
    for wrong in ({"port": 70000}, {"version": "newest"}, {"max_batch": 0}, {"model": "../x"}, {"unknown": 1}):
        with pytest.raises(ValueError):
            Settings(**wrong)  # type: ignore[arg-type]
