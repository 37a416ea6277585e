"""The query guard in a service: who hears what in each state, over every protocol, and what is counted and logged."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from server.engines.onnxruntime import EmbeddedEngine
from server.engines.repository import Repository
from server.guard import guard as rules
from server.http.app import create_app
from server.http.schemas import Answer
from tests.server.guard.test_fingerprint import picture
from tests.server.guard.test_guard import variants
from tests.server.keys import key, table, write
from tests.server.small import service_over

LIMIT = 8
INFER = "/v2/models/awnet/infer"


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


class Clients:
    """Asks the application in this process, from any address."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def post(self, path: str, address: str = "192.0.2.1", **request: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self._app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://awnet") as client:
            return await client.post(path, **request)

    async def predict(self, *images: bytes, address: str = "192.0.2.1", query: str = "") -> httpx.Response:
        files = [("image", ("a.png", image)) for image in images]
        return await self.post(f"/predict{query}", address, files=files)

    async def metrics(self) -> dict[str, float]:
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://awnet") as client:
            lines = (await client.get("/metrics")).text.splitlines()
        return {n: float(v) for n, _, v in (line.rpartition(" ") for line in lines if line.startswith("awnet_query"))}


@asynccontextmanager
async def serving(repository: Path, state: str, **settings: Any) -> Any:
    engine = EmbeddedEngine(Repository(repository), threads=1)
    service = service_over(engine, query_guard=state, query_guard_images=LIMIT, **settings)
    await service.start()
    try:
        yield Clients(create_app(service))
    finally:
        await service.stop()


@pytest.fixture
def events() -> Iterator[list[dict[str, Any]]]:
    """The lines of `awnet.guard`, read as a collector reads them."""
    lines: list[dict[str, Any]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert record.levelno == logging.WARNING
            lines.append(json.loads(record.getMessage()))

    logger, handler = logging.getLogger("awnet.guard"), Kept()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


IMAGES = [png(pixels) for pixels in variants(0, LIMIT + 4)]


@pytest.mark.parametrize("state", ["off", "observe"])
def test_nobody_outside_hears_of_the_guard_by_default(repository: Path, state: str) -> None:
    """Who is told that they were found tries something else."""

    async def scenario() -> None:
        async with serving(repository, state) as clients:
            for image in IMAGES:
                answer = await clients.predict(image)
                assert answer.status_code == 200
                assert "query_guard" not in answer.json()["results"][0]
            found = await clients.metrics()
            images = {
                name: found[f'awnet_query_guard_images_total{{result="{name}"}}'] for name in ("alone", "repeated")
            }
            assert images == ({"alone": 0, "repeated": 0} if state == "off" else {"alone": 1, "repeated": 4})
            assert found['awnet_query_guard_events_total{who="client"}'] == (state == "observe")

    asyncio.run(scenario())


def test_one_event_names_the_client_by_its_hash_and_the_requests(
    repository: Path, events: list[dict[str, Any]]
) -> None:
    """What somebody on call needs, and no address."""

    async def scenario() -> None:
        async with serving(repository, "observe") as clients:
            ids = [(await clients.predict(image)).headers["x-request-id"] for image in IMAGES]
        [event] = events
        assert event.pop("client").isalnum()
        assert event == {
            "event": "query-guard",
            "clients": 1,
            "images": LIMIT + 1,
            "limit": LIMIT,
            "seconds": 3600.0,
            "first_request_id": ids[0],
            "last_request_id": ids[LIMIT],
        }
        assert "192.0.2.1" not in json.dumps(events)

    asyncio.run(scenario())


def test_flag_tells_each_image_how_many_were_like_it(repository: Path) -> None:
    """Each image of a request for itself, in the documented shape."""

    async def scenario() -> None:
        async with serving(repository, "flag") as clients:
            for n, image in enumerate(IMAGES, 1):
                answer = (await clients.predict(image, png(picture(100 + n)))).json()
                Answer.model_validate(answer, strict=True)
                attacked, other = (result["query_guard"] for result in answer["results"])
                assert attacked == {"similar_queries": n, "repeated": n > LIMIT}
                assert other == {"similar_queries": 1, "repeated": False}

    asyncio.run(scenario())


@pytest.mark.parametrize("answers", ["bands", "verdict"])
def test_whoever_is_told_less_of_scores_is_told_the_same_of_queries(repository: Path, answers: str) -> None:
    async def scenario() -> None:
        async with serving(repository, "flag", answers=answers) as clients:
            answer = (await clients.predict(IMAGES[0])).json()
            Answer.model_validate(answer, strict=True)
            assert answer["results"][0]["query_guard"] == {"similar_queries": 1, "repeated": False}

    asyncio.run(scenario())


def test_the_open_inference_protocol_is_guarded_alike(repository: Path) -> None:
    """By tensor or by file; evidence is one whatever the protocol, and the parameters tell it."""

    async def scenario() -> None:
        async with serving(repository, "flag") as clients:
            for image in IMAGES[:LIMIT]:
                await clients.predict(image)
            pixels = variants(0, 1, 500)[0]
            tensor = {
                "name": "image",
                "datatype": "UINT8",
                "shape": [1, *pixels.shape],
                "data": pixels.ravel().tolist(),
            }
            answer = await clients.post(INFER, json={"inputs": [tensor]})
            parameters = answer.json()["parameters"]
            assert (parameters["similar_queries"], parameters["repeated"]) == (LIMIT + 1, True)

    asyncio.run(scenario())


def test_slow_lets_a_clients_repeated_queries_wait_and_nobody_else(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the victim whose image it is, and not the client's other images."""
    monkeypatch.setattr(rules, "FIRST_SECONDS", 3.0)

    async def scenario() -> None:
        async with serving(repository, "slow") as clients:
            for image in IMAGES[: LIMIT + 1]:
                assert (await clients.predict(image)).status_code == 200
            begun = time.monotonic()
            waiting = asyncio.create_task(clients.predict(IMAGES[LIMIT + 1]))
            for address, image in (("192.0.2.2", IMAGES[0]), ("192.0.2.1", png(picture(99)))):
                assert (await clients.predict(image, address=address)).status_code == 200
            assert not waiting.done()
            assert (await waiting).json()["results"][0]["query_guard"]["repeated"] is True
            assert time.monotonic() - begun >= 2

    asyncio.run(scenario())


def test_slow_refuses_what_would_wait_past_its_deadline(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """429 with the seconds until an answer, in the form of each protocol."""
    monkeypatch.setattr(rules, "FIRST_SECONDS", 50.0)

    async def scenario() -> None:
        async with serving(repository, "slow") as clients:
            for image in IMAGES[: LIMIT + 1]:
                assert (await clients.predict(image)).status_code == 200
            refused = await clients.predict(IMAGES[LIMIT + 1])
            assert refused.status_code == 429
            assert refused.json()["type"] == "urn:awnet:problem:repeated-queries"
            assert 10 < int(refused.headers["retry-after"]) <= 60
            again = await clients.post(
                INFER,
                json={
                    "inputs": [
                        {
                            "name": "image",
                            "datatype": "UINT8",
                            "shape": [1, 3, 32, 32],
                            "data": variants(0, 1, 500)[0].ravel().tolist(),
                        }
                    ],
                },
            )
            assert again.status_code == 429
            assert "nearly the same" in again.json()["error"]

    asyncio.run(scenario())


def test_the_evidence_against_a_key_is_the_keys(repository: Path, tmp_path: Path, events: list[dict[str, Any]]) -> None:
    """Wherever it is used from; and the event names it."""
    keys = write(tmp_path / "keys.toml", table("shop", ["predict"]))

    async def scenario() -> None:
        async with serving(repository, "observe", api_keys=keys) as clients:
            for n, image in enumerate(IMAGES):
                files, headers = {"image": ("a.png", image)}, {"x-api-key": key("shop")}
                answer = await clients.post("/predict", f"192.0.2.{n}", files=files, headers=headers)
                assert answer.status_code == 200
        [event] = events
        assert event["key"] == "shop"

    asyncio.run(scenario())


def test_addresses_of_one_ipv6_network_are_one_client(repository: Path) -> None:
    """A customer is given a /64, and with it more addresses than anybody could remember."""

    async def scenario() -> None:
        async with serving(repository, "flag") as clients:
            for n, image in enumerate(IMAGES, 1):
                answer = (await clients.predict(image, address=f"2001:db8::{n:x}")).json()
                assert answer["results"][0]["query_guard"]["similar_queries"] == n

    asyncio.run(scenario())
