"""Every request is observed alike: named, counted and logged once, with its reason where it was not answered."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client import generate_latest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server.errors import LinkLost, QueueFull
from server.http.admin import create_admin
from server.http.app import create_app
from server.monitoring.request_log import LOGGER
from server.oip.grpc_front import GrpcFront
from tests.server.small import GatedEngine, Small, service_over, started
from tests.server.tiny import Running, encoded, noise
from tests.waiting import until

PNG = encoded(noise())
INFER = "/v2/models/awnet/infer"
IMAGE_TYPE = {b"content-type": b"image/png"}


class Observed:
    """A small service, and what is said of each request to it."""

    def __init__(self, small: Small, lines: list[str]) -> None:
        self.small = small
        self._lines = lines

    def of(self, ask: Callable[[], Any]) -> tuple[Any, dict[str, Any], dict[str, float]]:
        """What `ask` gives, its one line in the request log, and the counters that it moved."""
        before = self.counters()
        del self._lines[:]
        got = ask()
        self.small.run(until(lambda: self._lines))  # a caller over gRPC may have its answer first
        (line,) = self._lines
        moved = {name: value - before.get(name, 0) for name, value in self.counters().items()}
        return got, json.loads(line), {name: value for name, value in moved.items() if value}

    def counters(self) -> dict[str, float]:
        """The series of requests and rejections."""
        rows = [row for row in generate_latest(self.small.metrics.registry).decode().splitlines() if row[0] != "#"]
        counted = ("awnet_requests_total", "awnet_rejections_total")
        return {name: float(value) for name, value in (row.rsplit(" ", 1) for row in rows) if name.startswith(counted)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    running = Small(tmp_path_factory.mktemp("repository"))
    yield running
    running.close()


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The request log, line by line."""
    written: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(record.getMessage())

    logger, handler = logging.getLogger(LOGGER), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield written
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def observed(small: Small, lines: list[str]) -> Observed:
    return Observed(small, lines)


def tensors(**changes: Any) -> bytes:
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 3, 32, 32], "data": [0] * 3072}
    return json.dumps({"inputs": [image | changes]}).encode()


REFUSED = {
    "no JSON": ("POST", INFER, b"{", 400, "bad-request"),
    "no tensor": ("POST", INFER, b"{}", 400, "invalid-tensor"),
    "another shape": ("POST", INFER, tensors(shape=[1, 3, 8, 8]), 400, "invalid-tensor"),
    "too many images": ("POST", INFER, tensors(shape=[9, 3, 32, 32]), 413, "too-many-images"),
    "too large a body": ("POST", INFER, bytes(1 << 21), 413, "body-too-large"),
    "another model": ("POST", "/v2/models/other/infer", tensors(), 404, "unknown-model"),
    "another version": ("GET", "/v2/models/awnet/versions/9", b"", 404, "unknown-model"),
    "no such path": ("GET", "/v2/nothing", b"", 404, "not-found"),
    "an extension that is not served": ("GET", "/v2/models/awnet/stats", b"", 404, "not-found"),
    "another method": ("DELETE", "/v2/models/awnet", b"", 405, "method-not-allowed"),
    "inference by GET": ("GET", INFER, b"", 405, "method-not-allowed"),
    "a prediction by GET": ("GET", "/predict", b"", 405, "method-not-allowed"),
    "a prediction of nothing": ("POST", "/predict", b"", 422, "missing-image"),
    "the documents by POST": ("POST", "/docs", b"", 405, "method-not-allowed"),
    "nothing of the page": ("GET", "/page/nothing", b"", 404, "not-found"),
    "nothing at all": ("GET", "/nothing", b"", 404, "not-found"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_is_logged_with_its_reason_and_counted_once(observed: Observed, what: str) -> None:
    """Whatever refuses it; under the route that it was for, and the client's own id."""
    method, path, body, status, reason = REFUSED[what]
    headers = IMAGE_TYPE | {b"x-request-id": b"mine"}
    (got, reply_headers, _), line, moved = observed.of(lambda: observed.small.http(method, path, headers, body))
    assert (got, line["status"], line["reason"], line["method"]) == (status, status, reason, method)
    assert (line["request_id"], reply_headers["x-request-id"]) == ("mine", "mine")
    assert moved.pop(f'awnet_rejections_total{{reason="{reason}"}}') == 1
    route = line["route"]
    assert moved == {f'awnet_requests_total{{code="{status}",method="{method}",route="{route}"}}': 1}
    assert route == (path if path in ("/predict", "/docs") else route)
    assert (route == "/predict") == (path == "/predict")


FAULTS = {"unforeseen": (RuntimeError("secret"), 500, "internal"), "full": (QueueFull("full"), 503, "queue-full")}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("path", "body"), [("/predict", PNG), (INFER, tensors())])
def test_a_fault_is_counted_and_logged_like_any_refusal(observed: Observed, path: str, body: bytes, fault: str) -> None:
    """One that nobody foresaw as `internal`, whose trace stands in the log under the request id."""
    error, status, reason = FAULTS[fault]
    observed.small.engine.fault = error
    try:
        (got, _, content), line, moved = observed.of(lambda: observed.small.http("POST", path, IMAGE_TYPE, body))
    finally:
        observed.small.engine.fault = None
    assert (got, line["status"], line["reason"]) == (status, status, reason)
    assert moved[f'awnet_rejections_total{{reason="{reason}"}}'] == 1
    assert b"secret" not in content


@pytest.mark.parametrize("error", [OSError("secret"), LinkLost("away")])
def test_a_fault_behind_a_route_is_a_problem_under_that_route(
    observed: Observed, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """FastAPI's own 500 is plain text, and another way to say it would be another thing to parse."""

    async def broken() -> None:
        raise error

    monkeypatch.setattr(observed.small.service, "exposition", lambda accept: broken())
    before = observed.counters()
    status, reply_headers, content = observed.small.http("GET", "/metrics")
    assert status == (500 if isinstance(error, OSError) else 503)
    assert reply_headers["content-type"] == "application/problem+json"
    assert ("retry-after" in reply_headers) == (status == 503)
    assert json.loads(content)["request_id"] == reply_headers["x-request-id"]
    assert b"secret" not in content
    name = f'awnet_requests_total{{code="{status}",method="GET",route="/metrics"}}'
    assert observed.counters()[name] == before.get(name, 0) + 1


# gRPC.


class Called:
    """gRPC in front of the small service."""

    def __init__(self, observed: Observed) -> None:
        self.observed = observed
        self.front = GrpcFront(observed.small.service, "127.0.0.1", 0)
        self.port = observed.small.run(self.front.start())

    def refused(self, method: str, message: Any, **options: Any) -> grpc.aio.AioRpcError:
        async def go() -> Any:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
                call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(message, **options)
                return caught.value

        error: grpc.aio.AioRpcError = self.observed.small.run(go())
        return error


@pytest.fixture
def called(observed: Observed) -> Iterator[Called]:
    running = Called(observed)
    yield running
    observed.small.run(running.front.stop(0))


GRPC_REFUSED = {
    "no tensor": ("ModelInfer", service_pb2.ModelInferRequest(model_name="awnet"), 400, "invalid-tensor"),
    "another model": ("ModelMetadata", service_pb2.ModelMetadataRequest(name="other"), 404, "unknown-model"),
    "not served": ("RepositoryIndex", service_pb2.RepositoryIndexRequest(), 404, "not-found"),
}


@pytest.mark.parametrize("what", GRPC_REFUSED)
def test_grpc_tells_and_takes_request_ids_and_logs_reasons_as_http_does(called: Called, what: str) -> None:
    """A client finds its call in the server's log whichever way it came; what is served nowhere is one series."""
    method, message, status, reason = GRPC_REFUSED[what]
    ask = lambda: called.refused(method, message, metadata=(("x-request-id", "mine"),))  # noqa: E731
    error, line, moved = called.observed.of(ask)
    assert dict(error.trailing_metadata())["x-request-id"] == "mine"
    assert (line["request_id"], line["status"], line["reason"]) == ("mine", status, reason)
    route = "other" if what == "not served" else f"/inference.GRPCInferenceService/{method}"
    assert line["route"] == route
    assert moved == {
        f'awnet_rejections_total{{reason="{reason}"}}': 1,
        f'awnet_requests_total{{code="{status}",method="GRPC",route="{route}"}}': 1,
    }


def test_a_method_of_grpc_that_nobody_knows_is_counted_and_logged(called: Called) -> None:
    """As a path of HTTP where there is nothing; under no name that a stranger chose."""

    async def go() -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{called.port}") as channel:
            return await channel.unary_unary("/no.such.Service/Method")(b"", timeout=60).code()

    code, line, moved = called.observed.of(lambda: called.observed.small.run(go()))
    assert code == grpc.StatusCode.UNIMPLEMENTED
    assert (line["route"], line["method"], line["status"], line["reason"]) == ("other", "GRPC", 404, "not-found")
    assert moved == {
        'awnet_rejections_total{reason="not-found"}': 1,
        'awnet_requests_total{code="404",method="GRPC",route="other"}': 1,
    }


def test_an_unforeseen_fault_of_grpc_is_counted_as_one(called: Called) -> None:
    """As over HTTP."""
    message = service_pb2.ModelInferRequest(
        model_name="awnet",
        inputs=[{"name": "image", "datatype": "UINT8", "shape": [1, 3, 32, 32]}],
        raw_input_contents=[bytes(3072)],
    )
    called.observed.small.engine.fault = RuntimeError("secret")
    try:
        error, line, moved = called.observed.of(lambda: called.refused("ModelInfer", message))
    finally:
        called.observed.small.engine.fault = None
    assert (error.code(), line["status"], line["reason"]) == (grpc.StatusCode.INTERNAL, 500, "internal")
    assert line["request_id"] == dict(error.trailing_metadata())["x-request-id"]
    assert moved['awnet_rejections_total{reason="internal"}'] == 1


# The admin port.

ADMIN_ORIGIN = {b"origin": b"http://evil.example"}
ADMIN: dict[str, tuple[str, str, dict[bytes, bytes], bytes, int, str, str | None]] = {
    "a reload": ("POST", "/admin/reload", {}, b"", 200, "/admin/reload", None),
    "a web page": ("POST", "/admin/reload", ADMIN_ORIGIN, b"", 403, "/admin/reload", "forbidden"),
    "a form": ("PUT", "/admin/shadow", {}, b"version=1", 415, "/admin/shadow", "unsupported-media"),
    "another model": (
        *("POST", "/admin/models/other/rollback", {}, b"", 404),
        *("/admin/models/{name}/rollback", "unknown-model"),
    ),
    "another method": ("GET", "/admin/canary", {}, b"", 405, "/admin/canary", "method-not-allowed"),
    "nothing": ("GET", "/admin/nothing", {}, b"", 404, "other", "not-found"),
}


@pytest.mark.parametrize("what", ADMIN)
def test_an_admin_call_is_counted_and_logged_like_any_request(observed: Observed, what: str) -> None:
    """Under a template, never a path: an operator finds who changed what, and what was refused."""
    method, path, headers, body, status, route, reason = ADMIN[what]
    ask = lambda: observed.small.http(method, path, headers | {b"x-request-id": b"mine"}, body)  # noqa: E731
    (got, reply_headers, content), line, moved = observed.of(ask)
    assert (got, line["status"], line.get("reason"), line["route"]) == (status, status, reason, route)
    assert line["request_id"] == reply_headers["x-request-id"] == "mine"
    expected = {f'awnet_requests_total{{code="{status}",method="{method}",route="{route}"}}': 1}
    if reason is not None:
        expected[f'awnet_rejections_total{{reason="{reason}"}}'] = 1
        assert json.loads(content)["type"] == f"urn:awnet:problem:{reason}"
    assert moved == expected


def test_admin_calls_that_only_read_are_counted_and_not_logged(observed: Observed, lines: list[str]) -> None:
    """As scrapes are: a program may ask every second."""
    for path in ("/admin/models", "/admin/detection"):
        before = observed.counters()
        assert observed.small.http("GET", path)[0] == 200
        name = f'awnet_requests_total{{code="200",method="GET",route="{path}"}}'
        assert observed.counters()[name] == before.get(name, 0) + 1
    assert lines == []


def test_a_fault_of_an_admin_call_says_nothing_of_the_inside(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 and not 409: nobody asked for something that cannot be served."""

    async def broken() -> None:
        raise OSError("secret")

    monkeypatch.setattr(observed.small.service, "detection", broken)
    before = observed.counters()
    status, _, content = observed.small.http("GET", "/admin/detection")
    assert (status, json.loads(content)["type"]) == (500, "urn:awnet:problem:internal")
    assert b"secret" not in content
    name = 'awnet_rejections_total{reason="internal"}'
    assert observed.counters()[name] == before.get(name, 0) + 1


# Clients who leave.


def test_a_client_who_leaves_is_logged_and_counted_whichever_way_it_came(repository: Path, lines: list[str]) -> None:
    """In the middle of its upload or while it waits: 499 and a reason, as for gRPC."""

    async def scenario() -> None:
        service = service_over(engine := GatedEngine(repository))
        app = create_app(service)
        async with started(service):
            await until(lambda: service.ready)
            engine.gate.clear()
            whole: dict[str, Any] = {"type": "http.request", "body": PNG, "more_body": False}
            gone: dict[str, Any] = {"type": "http.disconnect"}
            for path, body, messages in (
                ("/predict", PNG, [whole, gone]),
                (INFER, tensors(), [whole | {"body": tensors()}, gone]),
                ("/predict", PNG, [whole | {"body": PNG[:9], "more_body": True}, gone]),
                (INFER, tensors(), [whole | {"body": b"{", "more_body": True}, gone]),
            ):
                sent: list[Any] = []

                async def receive(messages: list[Any] = messages) -> Any:
                    return messages.pop(0)

                async def send(message: Any, sent: list[Any] = sent) -> None:
                    sent.append(message)

                headers = [(b"content-type", b"image/png"), (b"content-length", str(len(body)).encode())]
                scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
                await app(scope, receive, send)
                assert sent == []
            engine.gate.set()
        text = generate_latest(service.metrics.registry).decode()
        assert 'awnet_rejections_total{reason="client-gone"} 4.0' in text
        for route in ("/predict", "/v2/models/{model}/infer"):
            assert f'awnet_requests_total{{code="499",method="POST",route="{route}"}} 2.0' in text
        entries = [json.loads(line) for line in lines]
        assert [(line["status"], line["reason"]) for line in entries] == [(499, "client-gone")] * 4

    asyncio.run(asyncio.wait_for(scenario(), 60))


# HEAD, and what else is answered where.

READ = (
    "/",
    "/page/page.js",
    "/page/model.json",
    "/docs",
    "/openapi.json",
    "/metrics",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/awnet",
    "/v2/models/awnet/ready",
    "/v2/models/awnet/config",
    "/v2/models/awnet/versions/1/config",
)


@pytest.mark.parametrize("path", READ)
def test_head_answers_wherever_get_does(served: Running, path: str) -> None:
    """With the headers of GET, and no body; probes of balancers use it."""
    whole, head = served.http.get(path), served.http.head(path)
    assert (whole.status_code, head.status_code, head.content) == (200, 200, b"")
    ours, theirs = dict(head.headers), dict(whole.headers)
    for varying in ("date", "x-request-id", *(("content-length",) if path == "/metrics" else ())):
        assert ours.pop(varying) and theirs.pop(varying)
    assert ours == theirs
    assert int(head.headers["content-length"]) > 0


def test_head_of_what_is_not_there_is_what_get_says(served: Running) -> None:
    """The status, without the problem."""
    for path in ("/nothing", "/page/nothing", "/v2/models/other", "/v2/nothing", "/v2/health/nothing"):
        head = served.http.head(path)
        assert (head.status_code, head.content) == (served.http.get(path).status_code, b"")
        assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS"])
def test_a_405_names_the_methods_that_are_answered(observed: Observed, method: str) -> None:
    """Everywhere, and HEAD among them wherever GET is."""
    for path in READ:
        status, reply_headers, _ = observed.small.http(method, path)
        assert (path, status, reply_headers["allow"]) == (path, 405, "GET, HEAD")
    for path in ("/predict", INFER, "/v2/models/awnet/versions/1/infer"):
        for wrong in (method, "GET", "HEAD"):
            status, reply_headers, content = observed.small.http(wrong, path)
            assert (path, status, reply_headers["allow"]) == (path, 405, "POST")
            assert (content == b"") == (wrong == "HEAD")
            assert int(reply_headers["content-length"]) > 0


def test_the_admin_port_answers_head_and_names_its_methods(repository: Path) -> None:
    """HEAD before the models are there as well, as GET; an id of the client comes back with every answer."""

    async def look(http: httpx.AsyncClient) -> None:
        for path in ("/admin/models", "/admin/detection"):
            assert (await http.head(path)).status_code == (await http.get(path)).status_code == 200
            assert (await http.post(path)).headers["allow"] == "GET, HEAD"
        for path, allow in (("/admin/reload", "POST"), ("/admin/canary", "PUT"), ("/admin/shadow", "PUT")):
            refused = await http.get(path, headers={"x-request-id": "mine"})
            assert (refused.status_code, refused.headers["allow"]) == (405, allow)
            assert refused.headers["x-request-id"] == refused.json()["request_id"] == "mine"
        assert (await http.get("/admin/models", headers={"x-request-id": "me"})).headers["x-request-id"] == "me"

    async def scenario() -> None:
        service = service_over(engine := GatedEngine(repository))
        engine.gate.clear()
        transport = httpx.ASGITransport(create_admin(service), raise_app_exceptions=False)
        async with started(service), httpx.AsyncClient(transport=transport, base_url="http://a") as http:
            try:
                await look(http)
            finally:
                engine.gate.set()

    asyncio.run(asyncio.wait_for(scenario(), 60))
