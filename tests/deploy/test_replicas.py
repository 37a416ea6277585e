"""Two replicas behind the real haproxy: what each counts by itself, and how stickiness makes of them one."""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks.faults.scenarios import Bench, pair
from benchmarks.harness.load import loaded
from benchmarks.harness.processes import Server
from tests.requires import requires
from tests.server.cached import file
from tests.server.guard.test_guard import variants
from tests.server.keys import key, table, write
from tests.server.tiny import encoded, plain, publish

BY_ADDRESS, BY_KEY = "hdr(x-awnet-address)", "hdr(x-awnet-caller)"
LIMIT = 8
IMAGE = encoded(plain(0.9))
ALIKE = [file(pixels) for pixels in variants(0, 40)]

Pair = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def two(tmp_path: Path) -> Pair:
    """Two replicas of the tiny model behind haproxy, with these settings."""
    return lambda **settings: pair(Bench(tmp_path, publish(tmp_path / "models")), **settings)


async def predict(port: int, image: bytes, address: str = "127.0.0.1", **headers: str) -> tuple[int, Any]:
    """One request over a connection of its own: nothing but what haproxy is told brings it to the same replica."""

    def ask() -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", port, timeout=60, source_address=(address, 0))
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("POST", "/predict", image, {"content-type": "image/png", **given})
            answer = connection.getresponse()
            return answer.status, orjson.loads(answer.read())
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


async def images(replica: Server) -> float:
    """That the replica has judged."""
    return sum(n for name, n in (await replica.metrics()).items() if name.startswith("awnet_watched_images_total"))


async def grown(replicas: Sequence[Server], before: Sequence[float]) -> list[float]:
    """That each of them has judged since `before`."""
    return [await images(replica) - count for replica, count in zip(replicas, before, strict=True)]


async def found_after(port: int, **caller: str) -> int:
    """Like images that a client sends until it is told that they are too many."""
    for count, image in enumerate(ALIKE, 1):
        status, answer = await predict(port, image, **caller)
        assert status == 200
        if answer["results"][0]["query_guard"]["repeated"]:
            return count
    return len(ALIKE) + 1


@requires("haproxy")
def test_a_client_meets_one_replica_and_clients_are_spread_over_both(two: Pair) -> None:
    """Whatever it says of itself. Verdicts of both add up to what was sent."""

    async def scenario() -> None:
        async with two(balance=BY_ADDRESS) as (replicas, haproxy):
            homes = []
            for client in range(12):
                before = [await images(replica) for replica in replicas]
                for n in range(4):
                    headers = {"x_awnet_address": f"192.0.2.{n}", "authorization": f"Bearer {n}", "x_api_key": str(n)}
                    status, _ = await predict(haproxy.port, IMAGE, f"127.0.2.{client + 1}", **headers)
                    assert status == 200
                added = await grown(replicas, before)
                assert sorted(added) == [0, 4]
                homes.append(added.index(4))
            assert 2 <= sum(homes) <= 10
            assert sum([await images(replica) for replica in replicas]) == 48

    asyncio.run(scenario())


@requires("haproxy")
def test_a_key_meets_one_replica_from_everywhere_however_it_is_written(two: Pair, tmp_path: Path) -> None:
    """A second place for its evidence would be a second limit."""
    anybody = '[anonymous]\nscopes = ["metrics"]\n'
    keys = write(tmp_path / "keys.toml", anybody, *[table(f"client-{n}") for n in range(8)])

    async def scenario() -> None:
        async with two(balance=BY_KEY, api_keys=keys) as (replicas, haproxy):
            homes = []
            for client in range(8):
                one, before = key(f"client-{client}"), [await images(replica) for replica in replicas]
                written = [{"authorization": form.format(one)} for form in ("Bearer {}", "bearer {}", "BEARER   {}\t")]
                for n, headers in enumerate([*written, {"x_api_key": one}, {"x_api_key": f" {one} "}]):
                    assert (await predict(haproxy.port, IMAGE, f"127.0.3.{n + 1}", **headers))[0] == 200
                added = await grown(replicas, before)
                assert sorted(added) == [0, 5]
                homes.append(added.index(5))
            assert 1 <= sum(homes) <= 7

    asyncio.run(scenario())


@requires("haproxy")
@pytest.mark.parametrize(("balance", "after"), [("roundrobin", 2 * LIMIT + 1), (BY_ADDRESS, LIMIT + 1)])
def test_a_sticky_attacker_is_found_as_by_one_replica(two: Pair, balance: str, after: int) -> None:
    """In turns it may ask twice as often."""

    async def scenario() -> None:
        async with two(balance=balance, query_guard="flag", query_guard_images=LIMIT) as (_, haproxy):
            assert await found_after(haproxy.port) == after

    asyncio.run(scenario())


@requires("haproxy")
@pytest.mark.parametrize(("balance", "answered"), [("roundrobin", 6), (BY_ADDRESS, 3)])
def test_a_sticky_client_has_one_rate(two: Pair, balance: str, answered: int) -> None:
    async def scenario() -> None:
        async with two(balance=balance, requests_per_second=0.001, request_burst=3) as (_, haproxy):
            statuses = Counter([(await predict(haproxy.port, IMAGE))[0] for _ in range(9)])
            assert statuses == {200: answered, 429: 9 - answered}

    asyncio.run(scenario())


@requires("haproxy")
def test_the_clients_of_a_replica_that_is_killed_are_answered_by_the_other(two: Pair) -> None:
    """Under load, never wrongly. What it knew of them is lost, and the other begins anew; nobody else moves."""

    async def scenario() -> None:
        async with two(balance=BY_ADDRESS, query_guard="flag", query_guard_images=LIMIT) as (replicas, haproxy):
            for image in ALIKE[:LIMIT]:
                assert (await predict(haproxy.port, image))[0] == 200
            counts = [await images(replica) for replica in replicas]
            home = replicas[counts.index(LIMIT)]
            other = replicas[1 - counts.index(LIMIT)]
            elsewhere = await address_of(haproxy.port, other)
            seen = await images(other)
            async with loaded(haproxy.port, images=[IMAGE]) as load:
                await asyncio.sleep(0.5)
                assert await images(other) == seen
                home.send(signal.SIGKILL)
                await asyncio.sleep(2.0)
            assert load.counts()["wrong"] == 0
            # haproxy sends what got no answer to the other one; a connection may break before that is known.
            assert load.failed() <= 8
            assert load.counts()["ok"] > 50
            assert await found_after(haproxy.port) == LIMIT + 1
            home.start()
            await home.until_ready()
            await haproxy.up(0, 1)
            for address in ("127.0.0.1", elsewhere):
                before = [await images(replica) for replica in (home, other)]
                assert (await predict(haproxy.port, IMAGE, address))[0] == 200
                added = await grown((home, other), before)
                assert added == ([1, 0] if address == "127.0.0.1" else [0, 1])

    asyncio.run(scenario())


async def address_of(port: int, replica: Server) -> str:
    """A client that meets this replica."""
    for n in range(1, 50):
        before = await images(replica)
        await predict(port, IMAGE, f"127.0.4.{n}")
        if await images(replica) > before:
            return f"127.0.4.{n}"
    raise AssertionError("nobody meets it")


def test_addresses_are_told_apart_as_the_replicas_do() -> None:
    """A client with an IPv6 network is one client to both, and cannot choose a replica by its address."""
    text = (Path(__file__).resolve().parents[2] / "deploy/haproxy.cfg").read_text("utf-8")
    assert len(re.findall(r"set-header x-awnet-\w+ %\[src,ipmask\(32,64\)\]", text)) == 2
    assert not re.search(r"^\s+balance .*\bsrc\b|^\s+balance source", text, re.MULTILINE)
