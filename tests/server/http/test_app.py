"""The application over engines that are slow, that fail or that are wrong: what a client sees of it."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from server.core import clock
from server.core.engine import Signals, Terms
from server.engines.onnxruntime import EmbeddedEngine
from server.engines.repository import Repository
from server.errors import AWNetError, DeadlineExceeded, EngineFault, EngineUnavailable, StartupError, problem, status_of
from server.http.app import create_app
from server.http.exchange import DisconnectWatcher, Exchange
from server.monitoring.request import ObservedRequest
from server.settings.settings import Settings
from tests.server.small import GatedEngine, service_over, started
from tests.server.tiny import encoded, noise, plain, publish, spoilt_pixels
from tests.waiting import until

PNG = encoded(noise())
NO_DEADLINE = Terms()


@asynccontextmanager
async def client(engine: Any, **settings: Any) -> Any:
    service = service_over(engine, **settings)
    async with started(service):
        transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            http.service = service  # type: ignore[attr-defined]
            yield http


async def until_ready(http: httpx.AsyncClient) -> None:
    async def ready() -> bool:
        return (await http.get("/v2/health/ready")).status_code == 200

    await until(ready)


def ask(http: httpx.AsyncClient, data: bytes = PNG, query: str = "") -> Awaitable[httpx.Response]:
    return http.post(f"/predict{query}", content=data, headers={"content-type": "image/png"})


def run(scenario: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize(
    ("media", "body", "status"),
    [
        (b"image/png", PNG, 200),
        (b"image/png", PNG[:-30], 422),
        (b"image/png", b"GIF89a", 415),
        (b"multipart/form-data", PNG, 400),
        (b"multipart/form-data; boundary=B", b"--B\r\n\r\nx\r\n--B--", 400),
        (b"application/json", b"{}", 422),
    ],
)
def test_no_request_leaves_anything_to_a_collection_of_garbage(
    repository: Path, media: bytes, body: bytes, status: int
) -> None:
    """A refusal whose frames lie in a circle would keep its body, which may be megabytes, until the next collection."""

    async def scenario() -> None:
        service, statuses = service_over(GatedEngine(repository)), []
        async with started(service):
            app: Any = create_app(service)
            await until(lambda: service.ready)
            given = [(b"content-type", media), (b"content-length", b"%d" % len(body))]
            scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": given}

            async def receive() -> Any:
                return {"type": "http.request", "body": body, "more_body": False}

            async def send(message: Any) -> None:
                statuses.append(message.get("status"))

            def requests() -> list[object]:
                return [one for one in gc.get_objects() if issubclass(type(one), (Exchange, ObservedRequest))]

            elsewhere = [object.__new__(ObservedRequest) for _ in range(2)]  # as tests before this one may leave some
            gc.collect()
            gc.disable()
            try:
                others, there = {id(one): one for one in requests()}, []
                for _ in range(3):
                    await asyncio.create_task(app(scope, receive, send))
                    there.append(sum(id(one) not in others for one in requests()))
                assert max(there) <= 1  # a thread may still hold the last one; each that is left in a circle adds one
                assert statuses[-2] == status and all(id(one) in others for one in elsewhere)
            finally:
                gc.enable()

    run(scenario)


def test_a_request_whose_client_was_listened_for_leaves_nothing_to_a_collection_of_garbage() -> None:
    """Under load every request is: circles would bring collections, which look at whatever is in flight."""

    async def scenario() -> None:
        async def receive() -> Any:
            await asyncio.Event().wait()

        async def answered() -> None:
            request: Any = SimpleNamespace(id="1")
            exchange = Exchange(receive, receive, request, DisconnectWatcher(), {}, head=False, close=False)
            with exchange:
                exchange.listen()
                await asyncio.sleep(0)

        def exchanges() -> list[object]:
            return [one for one in gc.get_objects() if type(one) is Exchange]

        gc.disable()
        try:
            before = exchanges()
            for _ in range(3):
                await asyncio.create_task(answered())
            await asyncio.sleep(0.01)
            assert len(exchanges()) == len(before)
        finally:
            gc.enable()

    run(scenario)


def test_the_server_is_live_before_it_is_ready(repository: Path) -> None:
    """While the model loads, liveness is 200, readiness 503, and a prediction is to be tried again."""

    async def scenario() -> None:
        engine = GatedEngine(repository)
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
        engine = EmbeddedEngine(Repository(publish(tmp_path, change=spoiled_golden)), threads=1)
        async with client(engine) as http:
            await until(lambda: http.service.failure)
            assert (await http.get("/v2/health/ready")).status_code == 503
            assert (await ask(http)).status_code == 503
            assert "golden p_type" in http.service.failure.detail

    run(scenario)


def test_a_start_that_fails_in_an_unforeseen_way_is_told_as_well(repository: Path) -> None:
    """Whoever runs the server hears of it; nobody waits for ever."""

    async def scenario() -> None:
        engine = GatedEngine(repository)
        engine.start_fault = OSError("disk on fire")
        async with client(engine) as http:
            await until(lambda: http.service.failure is not None)
            assert (await http.get("/v2/health/ready")).status_code == 503

    run(scenario)


def test_a_full_queue_is_503_with_retry_after(repository: Path) -> None:
    """Those who were let in are answered, the rest at once refused, and it is counted."""

    async def scenario() -> None:
        engine = EmbeddedEngine(Repository(repository), threads=1, capacity=1)
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


class CrowdedEngine(EmbeddedEngine):
    """An engine in which so many images wait as `crowd` says, beside those that do."""

    crowd = 0

    def waiting(self) -> int:
        return super().waiting() + self.crowd


def test_who_finds_a_full_queue_is_refused_before_the_image_is_decoded(repository: Path) -> None:
    """An image that cannot be decoded is as good as any then; with room it is the image's fault."""

    async def scenario() -> None:
        engine = CrowdedEngine(Repository(repository), threads=1)
        spoilt = {"image": ("spoilt.png", spoilt_pixels(encoded(noise())))}
        async with client(engine, queue_capacity=4) as http:
            await until_ready(http)
            engine.crowd = 4
            refused = await http.post("/predict", files=spoilt)
            assert refused.json()["type"] == "urn:awnet:problem:queue-full"
            engine.crowd = 3
            assert (await http.post("/predict", files=spoilt)).status_code == 422

    run(scenario)


def test_an_engine_that_fails_is_503_and_says_nothing_about_itself(repository: Path) -> None:
    """A prediction failed; its reason is in the log."""

    async def scenario() -> None:
        engine = GatedEngine(repository)
        async with client(engine) as http:
            await until_ready(http)
            engine.fault = EngineFault("the model failed on this request")
            answer = await ask(http)
            assert answer.status_code == 503
            assert answer.json()["type"] == "urn:awnet:problem:engine-fault"

    run(scenario)


def test_an_unforeseen_error_is_a_500_without_its_trace(repository: Path) -> None:
    """The client gets the request id, the log gets the rest."""

    async def scenario() -> None:
        engine = GatedEngine(repository)
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
        engine = GatedEngine(repository)
        async with client(engine) as http:
            await until_ready(http)

            def spoil(signals: Signals) -> None:
                getattr(signals, name)[0, 0] = value

            engine.spoil = spoil
            answer = await ask(http, encoded(plain(0.1)))
            assert answer.status_code == 503
            assert "clean" not in answer.text

    run(scenario)


def test_an_engine_that_cannot_be_reached_takes_readiness_off(repository: Path) -> None:
    """503 with Retry-After for who comes all the same, a gauge of 0, and back again without a restart."""

    async def scenario() -> None:
        engine = GatedEngine(repository)
        async with client(engine) as http:
            await until_ready(http)
            engine.reachable = False
            engine.fault = EngineUnavailable("no Triton is reachable")
            assert (await http.get("/v2/health/ready")).status_code == 503
            assert "awnet_engine_up 0.0" in (await http.get("/metrics")).text
            answer = await ask(http)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["type"] == "urn:awnet:problem:engine-unavailable"
            engine.reachable, engine.fault = True, None
            assert (await http.get("/v2/health/ready")).status_code == 200
            assert (await ask(http)).status_code == 200

    run(scenario)


def test_a_deadline_that_passes_is_504_without_retry_after(repository: Path) -> None:
    """Trying again at once would only add to what made it late."""

    async def scenario() -> None:
        engine = GatedEngine(repository)
        async with client(engine) as http:
            await until_ready(http)
            engine.fault = DeadlineExceeded("the answer would come too late")
            answer = await ask(http, query="?timeout_ms=5")
            assert answer.status_code == 504
            assert "retry-after" not in answer.headers
            assert answer.json()["type"] == "urn:awnet:problem:deadline-exceeded"
            text = (await http.get("/metrics")).text
            assert 'awnet_rejections_total{reason="deadline-exceeded"} 1.0' in text

    run(scenario)


def test_deadline_and_priority_reach_the_engine(repository: Path) -> None:
    """A client may ask for less time than the server allows, never for more."""

    async def scenario() -> None:
        engine = GatedEngine(repository)
        async with client(engine, timeout_seconds=5) as http:
            await until_ready(http)
            for query, seconds, priority in [
                ("", 5.0, "normal"),
                ("?timeout_ms=2000", 2.0, "normal"),
                ("?timeout_ms=99000", 5.0, "normal"),
                ("?priority=low", 5.0, "low"),
            ]:
                begun = clock.now()
                assert (await ask(http, query=query)).status_code == 200
                terms = engine.asked[-1]
                assert begun + seconds <= terms.deadline <= clock.now() + seconds
                assert terms.priority == priority

    run(scenario)


def test_a_client_that_has_gone_gives_its_place_back(repository: Path) -> None:
    """Its work is cancelled, no answer is counted, and the next request is served."""

    async def scenario() -> None:
        engine = GatedEngine(repository)
        async with client(engine) as http:
            await until_ready(http)
            engine.gate.clear()
            app = http._transport.app
            messages = [
                {"type": "http.request", "body": PNG, "more_body": False},
                {"type": "http.disconnect"},
            ]
            sent: list[Any] = []

            async def receive() -> Any:
                return messages.pop(0)

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {
                "type": "http",
                "method": "POST",
                "path": "/predict",
                "query_string": b"",
                "headers": [(b"content-type", b"image/png")],
            }
            await app(scope, receive, send)
            assert (sent, engine.cancelled) == ([], 1)
            engine.gate.set()
            assert (await ask(http)).status_code == 200
            text = (await http.get("/metrics")).text
            assert 'awnet_rejections_total{reason="client-gone"} 1.0' in text
            assert not re.search(r'code="500".* [1-9]', text)

    run(scenario)


def test_the_open_inference_protocol_is_reached_through_the_same_door(repository: Path) -> None:
    """Ids, body limit and metrics as everywhere; the route is a template, the error has the protocol's shape."""

    async def scenario() -> None:
        async with client(GatedEngine(repository), max_body_bytes=1000) as http:
            await until_ready(http)
            metadata = await http.get("/v2/models/awnet", headers={"x-request-id": "me"})
            assert (metadata.status_code, metadata.json()["name"], metadata.headers["x-request-id"]) == (
                200,
                "awnet",
                "me",
            )
            large = await http.post("/v2/models/awnet/infer", content=b"x" * 1001)
            assert large.status_code == 413
            assert set(large.json()) == {"error"}
            assert (await http.get("/v2x")).json()["type"] == "urn:awnet:problem:not-found"
            text = (await http.get("/metrics")).text
            assert 'code="200",method="GET",route="/v2/models/{model}"' in text
            assert 'code="413",method="POST",route="/v2/models/{model}/infer"' in text

    run(scenario)


def test_draining_takes_readiness_off_and_answers_on(repository: Path) -> None:
    """Balancers look away, connections are given up one by one, nobody is turned down."""

    async def scenario() -> None:
        async with client(GatedEngine(repository)) as http:
            await until_ready(http)
            assert "connection" not in (await ask(http)).headers
            http.service.drain()
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
        assert status == 500 if issubclass(kind, StartupError) or kind is AWNetError else 400 <= status <= 505
        assert problem(kind("detail"), "id")["status"] == status


WRONG: list[dict[str, Any]] = [
    {"canary": "2"},
    {"canary": "2:1.5"},
    {"canary": "x:0.1"},
    {"canary": "2:nan"},
    {"canary": "02:0.1"},
    {"shadow": "two"},
    {"shadow": "²"},
    {"version": "01"},
    {"version": "+1"},
    {"version": "9" * 30},
    {"models": "good, ../bad"},
    {"versions_kept": 0},
    {"timeout_seconds": 0},
    {"engine": "other"},
]


def test_settings_come_from_the_environment_and_wrong_ones_are_refused(
    no_variables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWNET_ before each name; a value that makes no sense stops the start."""
    monkeypatch.setenv("AWNET_PORT", "9000")
    monkeypatch.setenv("AWNET_DATA_DIR", "/data")  # the tests' own, none of the server's
    assert Settings().port == 9000
    for wrong in ({"port": 70000}, {"version": "newest"}, {"max_batch": 0}, {"model": "../x"}, {"unknown": 1}, *WRONG):
        with pytest.raises(ValueError):
            Settings(**wrong)  # type: ignore[arg-type]
