"""Every route of every port, by every method: what callers get without a key, with a wrong one, and with each scope.

The routes are those of the running code: one that is new and has no row in `NEEDED` fails here.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from server.access.caller import SCOPES
from server.http import page
from server.http.front import routes_of
from server.http.metrics_port import create_metrics
from server.oip import rest
from server.oip.grpc_front import HEALTH_CHECK, HEALTH_WATCH, SERVICE, STANDARD, GrpcFront
from tests.server.keys import key, table, write
from tests.server.schema_3 import publish_modes
from tests.server.small import Small
from tests.server.tiny import encoded, noise

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

# Template -> the scope that it needs; None where everybody may ask.
NEEDED: dict[str, str | None] = {
    "/": None,
    "/page/{file}": None,
    "/page/examples.json": None,
    "/page/model.json": "predict",
    "/page/recent.json": "predict",
    "/v2/health/live": None,
    "/v2/health/ready": None,
    "/predict": "predict",
    "/model": "predict",
    "/docs": "predict",
    "/openapi.json": "predict",
    "/metrics": "metrics",
    "/v2": "predict",
    "/v2/models/{model}": "predict",
    "/v2/models/{model}/ready": "predict",
    "/v2/models/{model}/config": "predict",
    "/v2/models/{model}/infer": "predict",
    "/v2/models/{model}/versions/{version}": "predict",
    "/v2/models/{model}/versions/{version}/ready": "predict",
    "/v2/models/{model}/versions/{version}/config": "predict",
    "/v2/models/{model}/versions/{version}/infer": "predict",
    "/admin/models": "admin",
    "/admin/detection": "admin",
    "/admin/reload": "admin",
    "/admin/models/{name}/rollback": "admin",
    "/admin/models/{name}/promote": "admin",
    "/admin/canary": "admin",
    "/admin/shadow": "admin",
    "/admin/findings": "admin",
    "/admin/findings/{id}": "admin",
    "/admin/findings/{id}/evidence": "admin",
}
# Where there is nothing, which strangers are not told; the admin port has its own.
NOTHING = {
    "/nothing": "predict",
    "/v2/nothing": "predict",
    "/v2/models/secret": "predict",
    "/v2/health/live/": "predict",
    "/v2/health/other": "predict",
    "/page/nothing": "predict",
    "/page/../metrics": "predict",
    "/PREDICT": "predict",
    "//metrics": "predict",
    "/metrics\n": "predict",
    "/v2/health/live\n": "predict",
    "/redoc": "predict",
    "/admin/nothing": "admin",
}
# The route of a path that is not its own template.
ROUTES = {
    "/page/model.json": "/page/{file}",
    "/page/recent.json": "/page/{file}",
    "/v2/models/secret": "/v2/models/{model}",
}
GRPC_OPEN = {"ServerLive", "ServerReady", HEALTH_CHECK, HEALTH_WATCH}
FILLED = {"{model}": "awnet", "{version}": "1", "{name}": "awnet", "{file}": "page.js", "{id}": "0" * 32}


def filled(template: str) -> str:
    for part, value in FILLED.items():
        template = template.replace(part, value)
    return template


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """A service whose file has a key for each scope alone, and one for nothing."""
    tables = [*(table(scope, [scope]) for scope in SCOPES), table("nothing", [])]
    keys = write(tmp_path_factory.mktemp("keys") / "keys.toml", *tables)
    running = Small(tmp_path_factory.mktemp("repository"), api_keys=keys)
    yield running
    running.close()


def ask(small: Small, method: str, path: str, name: str | None) -> tuple[int, dict[str, str], bytes]:
    headers = {} if name is None else {b"authorization": f"Bearer {key(name)}".encode()}
    return small.http(method, path, headers)


def test_every_route_has_its_row(small: Small) -> None:
    """A route more, or one less, is decided here."""
    public = {path for path, _ in routes_of(small.app._routes.routes)}
    admin = {path for path, _ in routes_of(small.admin._routes.routes)}
    by_hand = {"/predict", page.INDEX, f"{page.PREFIX}{{file}}", page.MODELS, page.RECENT, page.EXAMPLES}
    assert set(NEEDED) == public | admin | by_hand | {path for path, _ in rest.ROUTES}
    named = {path for path in small.app._page.files if not path.startswith(f"{page.PREFIX}examples/")}
    assert {path for path in named if path.endswith(".json")} == {page.EXAMPLES}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("template", "needed"), [*NEEDED.items(), *NOTHING.items()])
def test_who_may_ask_for_what(small: Small, template: str, needed: str | None, method: str) -> None:
    """401 without a key and with a wrong one, 403 with a key that lacks the scope, anything else with one that has it.

    A wrong key where none is needed is no fault: a probe with yesterday's does not say that the server is dead.
    """
    path = filled(template)
    given = {name: ask(small, method, path, name) for name in (None, "wrong", "nothing", *SCOPES)}
    if needed is None:
        assert len({(status, body if status == 200 else b"") for status, _, body in given.values()}) == 1
        assert given[None][0] not in (401, 403)
        return
    for name, (status, headers, body) in given.items():
        expected = 401 if name in (None, "wrong") else 403
        if name == needed:
            assert status not in (401, 403), body
            continue
        assert status == expected, (name, body)
        assert ("www-authenticate" in headers) == (expected == 401)
        assert b"awnet_" not in body
        if body:
            document = json.loads(body)
            detail = document["error"] if path.startswith("/v2") and "health" not in path else document["detail"]
            assert len(detail) < 100 and "secret" not in detail


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("template", "needed"), [*NEEDED.items(), *NOTHING.items()])
def test_a_refusal_is_counted_under_the_route_that_was_meant(
    small: Small, template: str, needed: str | None, method: str
) -> None:
    """So that who reads the counters sees what strangers try; where there is nothing, `other` as ever."""
    if needed is None:
        return
    known = ROUTES.get(template, "other" if template in NOTHING else template)

    def counted(code: int) -> float:
        labels = {"route": known, "method": method, "code": str(code)}
        return small.metrics.registry.get_sample_value("awnet_requests_total", labels) or 0

    for code, name in ((401, None), (403, "nothing")):
        before = counted(code)
        assert ask(small, method, filled(template), name)[0] == code
        assert counted(code) == before + 1


@pytest.mark.parametrize(
    "path", ["/metrics\n", "/model\n", "/docs\n", "/v2/health/live\n", "/admin/models\n", "/page/model.json\n"]
)
def test_a_line_end_behind_a_path_finds_nothing(small: Small, path: str) -> None:
    """Also where the router would take it: what a path needs is known by the whole of it."""
    status, _, body = ask(small, "GET", path, "admin" if path.startswith("/admin") else "predict")
    assert status == 404, body[:100]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ["/metrics", "/", "/predict", "/v2/health/live"])
def test_the_port_for_metrics_wants_its_scope(small: Small, path: str, method: str) -> None:
    """For whatever is asked there: it has nothing else."""
    alone = create_metrics(small.service)
    assert {path for path, _ in routes_of(alone._routes.routes)} == {"/metrics"}
    public, small.app = small.app, alone
    try:
        given = {name: ask(small, method, path, name)[0] for name in (None, "wrong", "nothing", *SCOPES)}
    finally:
        small.app = public
    assert {given[None], given["wrong"]} == {401}
    assert {given[name] for name in ("nothing", "predict", "signals", "admin")} == {403}
    assert given["metrics"] == (404 if path != "/metrics" else 200 if method in ("GET", "HEAD") else 405)


def test_a_refusal_says_how_a_key_is_sent(small: Small) -> None:
    """As RFC 6750 has it, and in a document like every other."""
    status, headers, body = ask(small, "GET", "/model", None)
    assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="awnet"')
    assert headers["cache-control"] == "no-store"
    problem = json.loads(body)
    assert (problem["type"], problem["title"]) == ("urn:awnet:problem:unauthorized", "Unauthorized")
    status, headers, body = ask(small, "GET", "/model", "metrics")
    problem = json.loads(body)
    assert (status, problem["type"]) == (403, "urn:awnet:problem:forbidden")
    assert "'predict'" in problem["detail"]


def test_the_body_of_a_stranger_is_not_read(small: Small) -> None:
    """The answer is there before any of it has come, and the connection ends."""
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    for path in ("/predict", "/v2/models/awnet/infer"):
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
        small.run(small.app({**scope, "headers": [(b"content-length", b"1000")]}, receive, send))
    starts = [message for message in sent if message["type"] == "http.response.start"]
    assert [start["status"] for start in starts] == [401, 401]
    assert all((b"connection", b"close") in start["headers"] for start in starts)


class Caught:
    """Calls of gRPC as a stranger makes them: any method, any bytes."""

    def __init__(self, small: Small) -> None:
        self.small = small
        self.front = GrpcFront(small.service, "127.0.0.1", 0)
        self.port = small.run(self.front.start())

    def status(self, method: str, metadata: tuple[tuple[str, str | bytes], ...], body: bytes = b"") -> grpc.StatusCode:
        async def go() -> grpc.StatusCode:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
                call = channel.unary_unary(method)(body, metadata=metadata, timeout=30)
                return await call.code()

        return self.small.run(go())


@pytest.fixture(scope="module")
def called(small: Small) -> Iterator[Caught]:
    running = Caught(small)
    yield running
    small.run(running.front.stop(0))


ALL_CALLS = [method.name for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]


@pytest.mark.parametrize("name", [*ALL_CALLS, *STANDARD])
def test_who_may_call_what(called: Caught, name: str) -> None:
    """The same over gRPC, in metadata, before the message is looked at; calls that are not served, too."""
    method = name if name in STANDARD else f"/{SERVICE}/{name}"
    spoilt = b"\xff" * 8
    without = called.status(method, (), spoilt)
    right = called.status(method, (("authorization", f"Bearer {key('predict')}"),), spoilt)
    assert right not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    assert called.status(method, (("x-api-key", key("predict")),), spoilt) == right
    if name in GRPC_OPEN:
        assert without == right
        return
    assert without == grpc.StatusCode.UNAUTHENTICATED
    for metadata in (
        (("authorization", f"Bearer {key('wrong')}"),),
        (("authorization", f"Bearer {key('predict')}"), ("x-api-key", key("predict"))),
        (("authorization", f"Bearer {key('predict')}"),) * 2,
        (("authorization-bin", f"Bearer {key('predict')}".encode()),),
    ):
        assert called.status(method, metadata, spoilt) == grpc.StatusCode.UNAUTHENTICATED
    for scope in ("nothing", "signals", "metrics", "admin"):
        metadata = (("authorization", f"Bearer {key(scope)}"),)
        assert called.status(method, metadata, spoilt) == grpc.StatusCode.PERMISSION_DENIED


def test_a_key_has_its_own_default_mode(tmp_path: Path) -> None:
    """For requests that name none, which may still name another; /model says which it is."""
    keys = write(tmp_path / "keys.toml", table("robust", mode='"robust"'), table("plain"))
    moded = Small(publish_modes(tmp_path / "models", "3"), api_keys=keys, versions_kept=3)
    png = encoded(noise())

    def mode(name: str, query: str = "") -> str:
        headers = {b"authorization": f"Bearer {key(name)}".encode()}
        return str(json.loads(moded.http("POST", f"/predict{query}", headers, png)[2])["mode"])

    try:
        assert [mode("robust"), mode("plain"), mode("robust", "?mode=natural")] == ["robust", "auto", "natural"]
        assert json.loads(ask(moded, "GET", "/model", "robust")[2])["default_mode"] == "robust"
    finally:
        moded.close()


def test_the_documents_say_what_a_key_is_for(small: Small) -> None:
    """Each path its scope, as OpenAPI 3.1 has it, and how a key is sent; the page for people says the same."""
    document = json.loads(ask(small, "GET", "/openapi.json", "predict")[2])
    assert {scheme["type"] for scheme in document["components"]["securitySchemes"].values()} == {"http", "apiKey"}
    for path, methods in document["paths"].items():
        needed = "admin" if path.startswith("/admin/") else NEEDED.get(path, "predict")
        for method in methods.keys() - {"servers"}:
            operation = methods[method]
            scopes = {scope for scheme in operation["security"] for of in scheme.values() for scope in of}
            assert scopes == (set() if needed is None else {needed})
            assert ("401" in operation["responses"]) == bool(scopes)
    page = ask(small, "GET", "/docs", "predict")[2].decode()
    assert "<form" not in page and "Authorization: Bearer KEY" in page  # a form sends no header
    assert page.count("Needs a key with the scope <code>metrics</code>") == 1


def test_request_ids_are_exemplars_for_whoever_has_a_key_for_metrics(tmp_path: Path) -> None:
    """And on a server without keys while only its own machine reaches it: they are other callers' ids."""
    keys = write(tmp_path / "keys.toml", table("ops"), '[anonymous]\nscopes = ["predict", "metrics"]\n')
    expected = [
        ({}, None, True),
        ({"host": "::1"}, None, True),
        ({"host": "0.0.0.0"}, None, False),
        ({"api_keys": keys}, None, False),
        ({"api_keys": keys, "host": "0.0.0.0"}, "ops", True),
    ]
    for settings, name, shown in expected:
        counting = Small(tmp_path / "models", **settings)
        try:
            counting.http("POST", "/predict", {b"x-request-id": b"somebodys", b"content-type": b"image/png"}, b"")
            headers = {b"accept": b"application/openmetrics-text; version=1.0.0"}
            if name is not None:
                headers[b"x-api-key"] = key(name).encode()
            text = counting.http("GET", "/metrics", headers)[2].decode()
            assert text.endswith("# EOF\n")
            assert ("somebodys" in text) == shown, settings
        finally:
            counting.close()


def test_the_request_log_names_the_key(small: Small, caplog: pytest.LogCaptureFixture) -> None:
    """Its name, also where it lacks the scope; of the key itself nothing, anywhere."""
    logger = logging.getLogger("awnet.requests")
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    try:
        ask(small, "GET", "/model", "predict")
        ask(small, "GET", "/model", "metrics")
        ask(small, "GET", "/model", "wrong")
        ask(small, "GET", f"/model?key={key('predict')}", "predict")
        small.http("GET", "/model", {b"authorization": f"Bearer {key('predict')}x".encode()})
        small.http("GET", "/model", {b"x-request-id": key("predict").encode()})
    finally:
        logger.setLevel(logging.CRITICAL)
        logger.removeHandler(caplog.handler)
    lines = [json.loads(line) for line in dict.fromkeys(caplog.messages) if line.startswith("{")]
    assert [(line.get("key"), line["status"], line.get("reason")) for line in lines] == [
        ("predict", 200, None),
        ("metrics", 403, "forbidden"),
        *[(None, 401, "unauthorized")] * 4,
    ]
    assert "awnet_" not in caplog.text


def test_refusals_are_counted_from_0_on(tmp_path: Path) -> None:
    """By slug; and what became of each changed file of keys."""
    keys = write(tmp_path / "keys.toml", table("shop", ["predict", "metrics"]))
    counting = Small(tmp_path / "models", api_keys=keys)

    def counted(series: str) -> float:
        text = ask(counting, "GET", "/metrics", "shop")[2].decode()
        return float(re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)[1])

    unauthorized, forbidden = (f'awnet_rejections_total{{reason="{slug}"}}' for slug in ("unauthorized", "forbidden"))
    loaded, refused = (f'awnet_keys_reads_total{{result="{result}"}}' for result in ("loaded", "refused"))
    try:
        assert [counted(series) for series in (unauthorized, forbidden, loaded, refused)] == [0, 0, 0, 0]
        ask(counting, "GET", "/model", None)
        ask(counting, "GET", "/admin/models", "shop")
        keys.write_text("[keys")
        counting.service.access.check()
        assert [counted(series) for series in (unauthorized, forbidden, loaded, refused)] == [1, 1, 0, 1]
        write(keys, table("shop", ["metrics"]))
        counting.service.access.check()
        assert counted(loaded) == 1
        assert ask(counting, "GET", "/model", "shop")[0] == 403
    finally:
        counting.close()
