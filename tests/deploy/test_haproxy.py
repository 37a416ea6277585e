"""deploy/haproxy.cfg: accepted by the real haproxy, and its times fit the replica's."""

from __future__ import annotations

import asyncio
import re
import subprocess
from functools import partial
from http.client import HTTPConnection
from ipaddress import ip_address, ip_network
from pathlib import Path

import httpx
import pytest
import yaml

from benchmarks.faults.scenarios import Bench, pair
from server.core.bundled import EXAMPLES
from server.settings.settings import Settings
from tests.requires import requires
from tests.server.tiny import publish

CONFIG = Path(__file__).resolve().parents[2] / "deploy/haproxy.cfg"
TEXT = CONFIG.read_text("utf-8")


def seconds(text: str) -> float:
    """'250ms' or '15s' in seconds."""
    amount, unit = re.fullmatch(r"(\d+)(ms|s)", text).groups()  # type: ignore[union-attr]
    return int(amount) / (1000 if unit == "ms" else 1)


def timeout(name: str) -> float:
    return seconds(re.search(rf"^    timeout {name}\s+(\w+)$", TEXT, re.MULTILINE)[1])  # type: ignore[index]


def server_option(name: str) -> str:
    line = re.search(r"^    default-server (.*)$", TEXT, re.MULTILINE)[1]  # type: ignore[index]
    return re.search(rf"\b{name} (\w+)", line)[1]  # type: ignore[index]


@requires("haproxy")
@pytest.mark.parametrize("balance", ["", "hdr(x-awnet-address)", "hdr(x-awnet-caller)", "roundrobin"])
def test_haproxy_accepts_the_file_without_a_warning(balance: str) -> None:
    """With addresses, since names of containers are known nowhere else."""
    addresses = {
        "AWNET_REPLICA_1": "127.0.0.1:8001",
        "AWNET_REPLICA_2": "127.0.0.1:8002",
        "PATH": "/usr/sbin:/usr/bin:/bin",
        **({"AWNET_BALANCE": balance} if balance else {}),
    }
    done = subprocess.run(["haproxy", "-c", "-f", CONFIG], env=addresses, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr + done.stdout


def test_a_draining_replica_is_left_alone_before_it_leaves() -> None:
    """Its drain time is at least twice what haproxy needs to see that readiness is off."""
    notices = seconds(server_option("inter")) + (int(server_option("fall")) - 1) * seconds(server_option("fastinter"))
    assert Settings().drain_seconds >= 2 * notices


def test_marking_a_replica_down_cuts_nothing_off() -> None:
    """What a draining replica still has in flight is answered."""
    settings = "\n".join(line.partition("#")[0] for line in TEXT.splitlines())
    assert "on-marked-down" not in settings


def test_only_requests_that_got_no_answer_are_repeated() -> None:
    """Repeating a 503 would multiply an overload."""
    retried = re.search(r"^    retry-on (.*)$", TEXT, re.MULTILINE)[1].split()  # type: ignore[index]
    assert sorted(retried) == ["conn-failure", "empty-response"]


def test_the_replica_gives_up_first_and_haproxy_closes_first() -> None:
    """So that the client reads the replica's reason, and no request meets a connection that is being closed."""
    assert timeout("server") > Settings().timeout_seconds
    assert timeout("http-keep-alive") < Settings().keep_alive_seconds


def asked(port: int, client: str, path: str, **headers: str) -> int:
    """Status of a GET from this address of the loopback; 0 where the connection is closed instead."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60, source_address=(client, 0))
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return connection.getresponse().status
    except ConnectionResetError:
        return 0
    finally:
        connection.close()


@requires("haproxy")
def test_replicas_tell_the_clients_of_haproxy_apart(tmp_path: Path) -> None:
    """One that has used up its rate is refused, whatever it says of itself; another one is answered."""

    bench = Bench(tmp_path, publish(tmp_path / "models"))

    async def scenario() -> None:
        async with pair(bench, requests_per_second=0.001, request_burst=3) as (replicas, haproxy):
            ask = partial(asyncio.to_thread, asked, haproxy.port)
            statuses = [await ask("127.0.0.1", "/model") for _ in range(8)]
            assert sorted(statuses) == [200] * 6 + [429] * 2  # each replica has its own buckets
            assert await ask("127.0.0.1", "/model", X_Forwarded_For="127.0.0.4", Forwarded="for=127.0.0.4") == 429
            other = [await ask("127.0.0.3", "/model") for _ in range(8)]  # haproxy need not take turns exactly
            assert sorted(other) == [200] * 6 + [429] * 2
            assert await ask("127.0.0.3", "/v2/health/ready") == 200
            # A client at the replica itself cannot do as if it were haproxy.
            direct = [await asyncio.to_thread(asked, replicas[0].port, f"127.0.0.{n}", "/model") for n in (5, 2)]
            assert direct == [200, 0]

    asyncio.run(scenario())


@requires("haproxy")
def test_what_replicas_count_adds_up_to_what_clients_asked(tmp_path: Path) -> None:
    """Each counts its own images, for Prometheus to add; none is counted twice or lost."""
    image = (EXAMPLES / "cat-adversarial.png").read_bytes()
    sent = 40

    def judged(port: int) -> float:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        return sum(float(n) for n in re.findall(r"^awnet_watched_images_total{.*} (\S+)$", text, re.MULTILINE))

    async def scenario() -> None:
        async with pair(Bench(tmp_path, publish(tmp_path / "models"))) as (replicas, haproxy):

            def ask() -> int:  # a connection each, as from many clients
                return httpx.post(f"http://127.0.0.1:{haproxy.port}/predict", files={"image": image}).status_code

            assert [await asyncio.to_thread(ask) for _ in range(sent)] == [200] * sent
            counts = [await asyncio.to_thread(judged, replica.port) for replica in replicas]
            assert sum(counts) == sent and all(count > 0 for count in counts)

    asyncio.run(scenario())


def test_compose_has_the_replicas_trust_haproxy_and_nobody_else() -> None:
    """By its fixed address within the network; the file for haproxy names clients in the way that they expect."""
    compose = yaml.safe_load((CONFIG.parent / "compose.yaml").read_text("utf-8"))
    address = compose["services"]["haproxy"]["networks"]["inside"]["ipv4_address"]
    (subnet,) = compose["networks"]["inside"]["ipam"]["config"]
    assert ip_address(address) in ip_network(subnet["subnet"])
    for name in ("replica-1", "replica-2"):
        settings = compose["services"][name]["environment"]
        assert settings["AWNET_TRUSTED_PROXIES"] == address and settings["AWNET_PROXY_PROTOCOL"] == "true"
    assert re.search(r"^    default-server send-proxy-v2 ", TEXT, re.MULTILINE)
