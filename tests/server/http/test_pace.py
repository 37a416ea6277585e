"""New connections come at a bounded rate: setting them up never takes the whole loop."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest

from benchmarks.harness.exchange import exposition
from server.access.addresses import TrustedProxies
from server.http.pace import SWEEP_CLIENTS, Pace
from tests.server.http.one_port import OnePort, asked
from tests.server.tiny import Running
from tests.waiting import eventually

NONE = TrustedProxies()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def paced(rate: float, of_client: float, proxies: TrustedProxies = NONE) -> tuple[Pace, Clock, list[int]]:
    clock, refused = Clock(), []
    return Pace(rate, of_client, proxies, lambda: refused.append(1), clock), clock, refused


def test_a_client_has_its_burst_then_waits_then_is_refused() -> None:
    """Who is refused does not count, so waiting never grows beyond a second; a pause gives the burst back."""
    pace, clock, refused = paced(0, 10)
    waits = [pace.wait("1.2.3.4") for _ in range(40)]
    assert waits[:10] == [0.0] * 10
    assert waits[10:21] == pytest.approx([n / 10 for n in range(11)])
    assert (waits[21:], len(refused)) == ([None] * 19, 19)
    assert pace.wait("5.6.7.8") == 0.0
    clock.now += 3
    assert pace.wait("1.2.3.4") == 0.0


def test_connections_that_came_while_the_process_stood_still_had_their_turns() -> None:
    """As many as might have come; a second later the rate is as before."""
    clock, refused, stood_still = Clock(), list[int](), Clock()
    pace = Pace(0, 10, NONE, lambda: refused.append(1), clock, stood_still)
    assert pace.wait("1.2.3.4") == 0.0
    clock.now += 5
    stood_still.now += 5
    waits = [pace.wait("1.2.3.4") for _ in range(100)]
    assert waits[:70] == pytest.approx([0.0] * 60 + [n / 10 for n in range(1, 11)])
    assert waits[70:] == [None] * 30 == [None] * len(refused)
    clock.now += 10
    assert [pace.wait("1.2.3.4") for _ in range(40)].count(None) == 19


def test_the_rate_of_one_after_the_other_is_kept() -> None:
    """A client that waits for each answer is slowed and never refused."""
    pace, clock, refused = paced(0, 50)
    begun = clock.now
    for _ in range(500):
        wait = pace.wait("1.2.3.4")
        assert wait is not None
        clock.now += wait + 1e-4
    assert not refused
    assert 500 / (clock.now - begun) == pytest.approx(50, rel=0.15)


@pytest.mark.parametrize("address", [lambda n: f"10.0.{n // 250}.{n % 250}", lambda n: f"2001:db8:{n:x}::1"])
def test_many_addresses_share_the_rate_of_all(address: Callable[[int], str]) -> None:
    """And what is remembered of them is bounded by it."""
    pace, clock, refused = paced(100, 10)
    let = sum(pace.wait(address(n)) is not None for n in range(1000))
    assert let in (200, 201) and len(refused) == 1000 - let  # the last one on the edge
    for n in range(30_000):
        clock.now += 0.01
        pace.wait(address(n % 60_000))
    assert len(pace._full_at_of) <= SWEEP_CLIENTS + 1


def test_an_ipv6_network_is_one_client_and_a_trusted_proxy_none() -> None:
    """As everywhere."""
    proxies = TrustedProxies([ip_network("10.0.0.1")])
    pace, _, _ = paced(0, 10, proxies)
    assert [pace.wait(f"2001:db8::{n:x}") for n in range(1, 30)][-1] is None
    assert {pace.wait("10.0.0.1") for _ in range(100)} == {0.0}
    unbounded, _, _ = paced(0, 0)
    assert {unbounded.wait("1.2.3.4") for _ in range(1000)} == {0.0}


def test_who_floods_waits_and_others_do_not() -> None:
    """Over sockets: the flood's later connections are set up late or closed, another client's at once."""
    refused: list[int] = []
    port = OnePort(pace=Pace(0, 5, NONE, lambda: refused.append(1)), connections_per_client=0)
    try:
        flood = [port.connected("127.0.0.3") for _ in range(30)]
        begun = time.monotonic()
        with port.connected("127.0.0.4") as other:
            assert asked(other)[0] == 200
        assert time.monotonic() - begun < 0.5
        eventually(lambda: len(refused) >= 15, what="the flood is refused")
        statuses = []
        for connection in flood:
            try:
                statuses.append(asked(connection)[0])
            except OSError:
                statuses.append(0)
            connection.close()
        assert statuses.count(200) >= 5
        assert statuses.count(0) == len(refused)
    finally:
        port.close()


@pytest.mark.process
def test_the_settings_reach_the_port(repository: Path) -> None:
    """And the refused are counted."""
    server = Running(repository, connections_per_second_per_client=5)
    try:
        server.wait_ready()
        time.sleep(2)  # so that as many may come at once again
        counted = 'awnet_rejections_total{reason="too-many-connections-of-client"}'

        def refused() -> float:
            return exposition(server.http.get("/metrics").content).get(counted, 0)

        assert refused() == 0
        for _ in range(40):
            socket.create_connection(("127.0.0.1", server.port), 30).close()
        eventually(lambda: refused() > 0, what="a connection is refused")
    finally:
        server.stop()
