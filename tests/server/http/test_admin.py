"""The admin calls: what an operator can do without a restart, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.engines.onnxruntime import EmbeddedEngine
from server.engines.repository import Repository
from server.http.admin import create_admin
from server.http.app import create_app
from tests.server.small import service_over, started
from tests.server.tiny import encoded, noise, publish
from tests.waiting import until

PNG = encoded(noise())


@asynccontextmanager
async def served(repository: Path, *, wait: bool = True, **settings: Any) -> Any:
    """(admin, users): clients of the two ports of one server."""
    service = service_over(EmbeddedEngine(Repository(repository), threads=1), **settings)
    admin, app = create_admin(service), create_app(service)
    async with (
        started(service),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(admin, raise_app_exceptions=False), base_url="http://localhost"
        ) as one,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://u") as two,
    ):
        if wait:
            await until(lambda: service.ready)
        yield one, two


def run(scenario: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


async def version(users: httpx.AsyncClient, query: str = "") -> str:
    answer = await users.post(f"/predict{query}", content=PNG, headers={"content-type": "image/png"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model"]["version"])


def test_a_reload_takes_what_is_new_and_says_so(tmp_path: Path) -> None:
    """With each change; a second one finds nothing."""

    async def scenario() -> None:
        async with served(publish(tmp_path)) as (admin, users):
            publish(tmp_path, "2", seed=1)
            assert await version(users) == "1"
            answer = await admin.post("/admin/reload")
            assert answer.status_code == 200
            (change,) = answer.json()["changes"]
            assert (change["model"], change["version"], change["result"]) == ("awnet", "2", "loaded")
            assert await version(users) == "2"
            assert (await admin.post("/admin/reload")).json()["changes"] == []
            text = (await users.get("/metrics")).text
            assert 'awnet_reloads_total{model="awnet",result="loaded"} 2.0' in text
            assert 'awnet_reloads_total{model="awnet",result="unchanged"} 1.0' in text

    run(scenario)


def test_the_status_tells_what_is_served_and_why_something_is_not(tmp_path: Path) -> None:
    """Names, versions, roles, hashes, refusals."""

    async def scenario() -> None:
        publish(tmp_path)
        publish(tmp_path, "2", lambda contract: contract.update(schema_version=7), seed=1)
        async with served(tmp_path) as (admin, _):
            status = (await admin.get("/admin/models")).json()
            (model,) = status["models"]
            assert (model["name"], model["default"], model["serving"]) == ("awnet", True, "1")
            assert [(v["version"], v["role"], len(v["sha256"])) for v in model["versions"]] == [("1", "serving", 64)]
            (refused,) = model["refused"]
            assert refused["version"] == "2"
            assert "schema_version" in refused["detail"]
            assert (status["canary"], status["shadow"]) == (None, None)

    run(scenario)


def test_rollback_and_promotion_move_all_requests_at_once(tmp_path: Path) -> None:
    """Back and forth."""

    async def scenario() -> None:
        publish(tmp_path)
        async with served(publish(tmp_path, "2", seed=1)) as (admin, users):
            assert await version(users) == "2"
            answer = await admin.post("/admin/models/awnet/rollback")
            assert answer.json()["models"][0]["serving"] == "1"
            assert await version(users) == "1"
            assert (await admin.post("/admin/models/awnet/rollback")).status_code == 404
            answer = await admin.post("/admin/models/awnet/promote", json={"version": 2})
            assert answer.status_code == 200
            assert await version(users) == "2"

    run(scenario)


def test_canary_and_shadow_are_set_and_ended(tmp_path: Path) -> None:
    """As requests and metrics show it."""

    async def scenario() -> None:
        publish(tmp_path)
        async with served(publish(tmp_path, "2", seed=1), version="1") as (admin, users):
            answer = await admin.put("/admin/canary", json={"version": "2", "share": 0.5})
            assert answer.json()["canary"] == {"version": "2", "share": 0.5}
            assert [await version(users) for _ in range(4)] == ["1", "2", "1", "2"]
            text = (await users.get("/metrics")).text
            assert 'awnet_canary_share{model="awnet",version="2"} 0.5' in text
            assert 'awnet_model_info{model="awnet",role="canary",version="2"} 1.0' in text
            assert (await admin.put("/admin/canary", json={"version": None})).json()["canary"] is None
            assert "awnet_canary_share{" not in (await users.get("/metrics")).text

            assert (await admin.put("/admin/shadow", json={"version": 2})).json()["shadow"] == "2"
            before = (await users.get("/metrics")).text
            assert [await version(users) for _ in range(4)] == ["1"] * 4
            counted = 'awnet_shadow_images_total{model="awnet",result="compared",version="2"} 4.0'

            async def compared() -> str:
                text = (await users.get("/metrics")).text
                return text if counted in text else ""

            text = await until(compared)
            users_verdicts = 'awnet_verdicts_total{model="awnet",verdict="suspicious",version="2"}'
            assert [line for line in before.splitlines() if users_verdicts in line] == [
                line for line in text.splitlines() if users_verdicts in line
            ]
            assert (await admin.put("/admin/shadow", json={"version": None})).json()["shadow"] is None

    run(scenario)


WRONG: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "an unknown path": ("GET", "/admin/nothing", {}, 404),
    "an unknown model": ("POST", "/admin/models/other/rollback", {}, 404),
    "a change by GET": ("GET", "/admin/reload", {}, 405),
    "a rollback by GET": ("GET", "/admin/models/awnet/rollback", {}, 405),
    "nothing to go back to": ("POST", "/admin/models/awnet/rollback", {}, 404),
    "a version that is not there": ("POST", "/admin/models/awnet/promote", {"json": {"version": 9}}, 409),
    "no version": ("POST", "/admin/models/awnet/promote", {"json": {}}, 422),
    "a version that is none": ("POST", "/admin/models/awnet/promote", {"json": {"version": "latest"}}, 422),
    "a path for a version": ("POST", "/admin/models/awnet/promote", {"json": {"version": "../1"}}, 422),
    "a version with a leading zero": ("POST", "/admin/models/awnet/promote", {"json": {"version": "01"}}, 422),
    "a version with a sign": ("PUT", "/admin/shadow", {"json": {"version": "+1"}}, 422),
    "a version of another script": ("PUT", "/admin/shadow", {"json": {"version": "²"}}, 422),
    "a version of thirty digits": ("PUT", "/admin/shadow", {"json": {"version": "9" * 30}}, 422),
    "a boolean": ("PUT", "/admin/shadow", {"json": {"version": True}}, 422),
    "the serving version as shadow": ("PUT", "/admin/shadow", {"json": {"version": 1}}, 400),
    "the serving version as canary": ("PUT", "/admin/canary", {"json": {"version": 1, "share": 0.1}}, 400),
    "no share": ("PUT", "/admin/canary", {"json": {"version": 1}}, 422),
    "too large a share": ("PUT", "/admin/canary", {"json": {"version": 1, "share": 1.01}}, 422),
    "a share that is no number, and no version": (
        "PUT",
        "/admin/canary",
        {"json": {"version": None, "share": []}},
        422,
    ),
    "a share that is no number": ("PUT", "/admin/canary", {"json": {"version": 1, "share": "0.5"}}, 422),
    "another field": ("PUT", "/admin/shadow", {"json": {"version": None, "model": "awnet"}}, 422),
    "a list": ("PUT", "/admin/shadow", {"json": []}, 422),
    "no JSON": ("PUT", "/admin/shadow", {"content": b"{", "headers": {"content-type": "application/json"}}, 422),
    "a form": ("PUT", "/admin/shadow", {"data": {"version": "1"}}, 415),
    "a large body": ("PUT", "/admin/shadow", {"json": {"version": "1" * 9000}}, 413),
    "a web page": ("POST", "/admin/reload", {"headers": {"origin": "http://evil.example"}}, 403),
    "a web page that reads": ("GET", "/admin/models", {"headers": {"origin": "http://evil.example"}}, 403),
}


def test_what_cannot_be_done_is_a_problem_and_changes_nothing(tmp_path: Path) -> None:
    """Every error is a problem document with a status that fits."""

    async def scenario() -> None:
        async with served(publish(tmp_path)) as (admin, users):
            before = (await admin.get("/admin/models")).json()
            for name, (method, path, options, status) in WRONG.items():
                answer = await admin.request(method, path, **options)
                assert (name, answer.status_code) == (name, status), answer.text
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["status"] == status
                assert answer.json()["type"].startswith("urn:awnet:problem:")
            assert (await admin.get("/admin/models")).json() == before
            assert await version(users) == "1"

    run(scenario)


@pytest.mark.parametrize(("method", "path"), [("POST", "/admin/reload"), ("PUT", "/admin/shadow")])
def test_nothing_can_be_changed_before_the_models_are_there(tmp_path: Path, method: str, path: str) -> None:
    """503; the status can be read."""

    async def scenario() -> None:
        async with served(publish(tmp_path), wait=False) as (admin, _):
            assert (await admin.request(method, path, json={"version": 1})).status_code == 503
            assert (await admin.get("/admin/models")).status_code == 200

    run(scenario)


def test_the_admin_calls_are_not_on_the_public_port(tmp_path: Path) -> None:
    """Only those who reach the admin port can change anything."""

    async def scenario() -> None:
        async with served(publish(tmp_path)) as (_, users):
            assert (await users.get("/admin/models")).status_code == 404
            assert (await users.post("/admin/reload")).status_code == 404

    run(scenario)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8002", 200),
        ("localhost.", 200),
        ("127.0.0.1:8002", 200),
        ("127.0.0.9", 200),
        ("[::1]:8002", 200),
        ("::1", 200),
        ("10.1.2.3:8002", 200),
        ("Awnet-Admin:8002", 200),
        ("10.9.9.9", 200),
        ("10.9.9.8", 421),
        ("evil.example", 421),
        ("evil.example:8002", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("evil.example@localhost", 421),
        ("0", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_the_admin_port_answers_under_its_own_names_only(tmp_path: Path, host: str, status: int) -> None:
    """DNS rebinding: a page whose name has become this address still asks for that name."""

    async def scenario() -> None:
        settings = {"admin_host": "10.1.2.3", "admin_hosts": "awnet-admin"}
        service = service_over(EmbeddedEngine(Repository(publish(tmp_path)), threads=1), **settings)
        transport = httpx.ASGITransport(create_admin(service))
        async with started(service), httpx.AsyncClient(transport=transport, base_url="http://10.9.9.9") as admin:
            answer = await admin.get("/admin/models", headers={"host": host})
            assert answer.status_code == status
            if status == 421:
                assert answer.json()["type"] == "urn:awnet:problem:misdirected-request"

    run(scenario)
