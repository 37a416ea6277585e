"""The ports of a running service: TLS on each of them, metrics on their own, the client behind a trusted proxy."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.harness.exchange import exposition
from benchmarks.harness.processes import free_port
from server.ports.listening import listen_all
from tests.server.http.one_port import certificate
from tests.server.small import Small
from tests.server.tiny import Running
from tests.waiting import eventually


class Secured(Running):
    """Two workers that speak TLS on every port; their certificate can be replaced."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.chain, self.key = certificate(folder)
        self.admin, self.metrics_port, self.grpc_port = free_port(), free_port(), free_port()
        super().__init__(
            repository,
            workers=2,
            requests_per_second=0.001,
            request_burst=40,
            trusted_proxies="127.0.0.1",
            tls_certificate=self.chain,
            tls_key=self.key,
            admin_port=self.admin,
            metrics_port=self.metrics_port,
            grpc_port=self.grpc_port,
        )
        eventually(lambda: self.running and self.status(self.port, "/v2/health/ready") == 200, what="it is ready")

    def status(self, port: int, path: str, **headers: str) -> int:
        """Of a GET over TLS; 0 where nobody answers."""
        try:
            with self.open(port, path, {name.replace("_", "-"): value for name, value in headers.items()}) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def open(self, port: int, path: str, headers: Mapping[str, str] = {}):  # type: ignore[no-untyped-def]
        context = ssl.create_default_context(cafile=str(self.chain))
        request = urllib.request.Request(f"https://localhost:{port}{path}", headers=dict(headers))
        return urllib.request.urlopen(request, timeout=30, context=context)

    def live_by_grpc(self) -> bool:
        credentials = grpc.ssl_channel_credentials(self.chain.read_bytes())
        with grpc.secure_channel(f"localhost:{self.grpc_port}", credentials) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            return bool(stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=30).live)


@pytest.fixture(scope="module")
def secured(process: None, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    running = Secured(repository, tmp_path_factory.mktemp("tls"))
    try:
        yield running
    finally:
        running.stop()


def test_every_port_speaks_tls(secured: Secured) -> None:
    """In every worker; and the log says https."""
    for _ in range(4):
        assert secured.status(secured.port, "/v2/health/live") == 200
        assert secured.status(secured.admin, "/admin/models") == 200
    assert secured.live_by_grpc()
    assert f"listening on https://127.0.0.1:{secured.port}" in secured.text()


def test_metrics_are_on_their_own_port_and_no_other(secured: Secured) -> None:
    """What is not to be seen by clients is not on their port; that port answers nothing else."""
    assert secured.status(secured.port, "/metrics") == 404
    assert secured.status(secured.metrics_port, "/v2/health/live") == 404
    assert secured.status(secured.metrics_port, "/predict") == 404
    with secured.open(secured.metrics_port, "/metrics") as answer:
        assert b"awnet_workers 2.0" in answer.read()


def test_workers_share_the_buckets_of_clients(secured: Secured) -> None:
    """The rate is that of the service, whichever worker a connection comes to."""
    asked = [secured.status(secured.port, "/model", x_forwarded_for="203.0.113.9") for _ in range(42)]
    assert asked == [200] * 40 + [429] * 2


def test_pipelined_requests_are_charged_one_by_one(secured: Secured) -> None:
    """Sent at once or not: forty are answered."""
    request = b"GET /model HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.10\r\n\r\n"
    context = ssl.create_default_context(cafile=str(secured.chain))
    statuses: list[int] = []
    with context.wrap_socket(
        socket.create_connection(("127.0.0.1", secured.port), 60), server_hostname="localhost"
    ) as connection:
        for _ in range(2):
            connection.sendall(request * 21)
            wanted, answers = len(statuses) + 21, b""
            while len(statuses) + answers.count(b"HTTP/1.1 ") < wanted or not answers.endswith(b"}"):
                answers += connection.recv(65536)
            statuses += [int(found) for found in re.findall(rb"HTTP/1\.1 (\d+)", answers)]
    assert statuses == [200] * 40 + [429] * 2


def test_a_new_certificate_reaches_every_port(secured: Secured, tmp_path: Path) -> None:
    """HTTP and gRPC of every worker, without a restart; a bad one in between changes nothing."""
    secured.key.write_bytes(b"rubbish")
    eventually(lambda: "the one before it stays" in _touched(secured), what="a worker has seen it")
    assert secured.status(secured.port, "/v2/health/live") == 200 and secured.live_by_grpc()
    chain, key = certificate(tmp_path)
    key.replace(secured.key)
    chain.replace(secured.chain)
    for port in (secured.port, secured.admin, secured.metrics_port):
        eventually(
            lambda port=port: secured.status(port, "/v2/health/live") in (200, 404),
            what="its clients trust the new certificate",
        )

    def by_grpc() -> bool:
        try:
            return secured.live_by_grpc()
        except grpc.RpcError:
            return False

    eventually(by_grpc, what="clients of gRPC do, too")

    def value(series: str) -> float:
        try:
            with secured.open(secured.metrics_port, "/metrics") as answer:
                return exposition(answer.read())[series]
        except urllib.error.URLError:  # the worker that took this connection still had the certificate before
            return -1.0

    for result in ("refused", "loaded"):
        series = f'awnet_certificate_reads_total{{result="{result}"}}'
        eventually(lambda series=series: value(series) >= 1, what=f"{series} counts")
    expiry = "awnet_certificate_expiry_timestamp_seconds"
    eventually(lambda: abs(value(expiry) - time.time() - 90 * 86_400) < 3600, what="the new one's end is told")


def _touched(secured: Secured) -> str:
    secured.status(secured.port, "/v2/health/live")
    return secured.text()


@pytest.mark.parametrize(
    ("hosts", "by_keys", "warned"),
    [
        (["127.0.0.1", "127.0.0.1"], False, None),
        (["0.0.0.0", "127.0.0.1"], True, None),
        (["0.0.0.0", "127.0.0.1"], False, "reaches 0.0.0.0 may"),
        (["127.0.0.1", "::"], False, "reaches :: may"),
        (["0.0.0.0", "::"], False, "reaches 0.0.0.0 and :: may"),
    ],
)
def test_a_server_that_all_may_ask_says_so_once(
    hosts: list[str], by_keys: bool, warned: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Where others than this machine reach it and no keys are asked for; one line for all ports."""
    opened = listen_all({name: (host, 0, "--port") for name, host in zip("ab", hosts, strict=True)}, False, by_keys)
    for sockets in opened.values():
        for bound in sockets:
            bound.close()
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (warned is not None)
    assert warned is None or (warned in warnings[0] and "AWNET_API_KEYS" in warnings[0])


@pytest.mark.process
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--tls-certificate", "{chain}"], "tls_key"),
        (["--tls-client-ca", "{chain}"], "tls_certificate"),
        (["--proxy-protocol"], "trusted_proxies"),
        (["--request-burst", "3"], "requests_per_second"),
        (["--trusted-proxies", "10.0.0.1/8"], "10.0.0.1/8"),
        (["--trusted-proxies", "10.0.0.1,::/0"], "all addresses"),
        (["--admin-hosts", "admin:8002"], "admin:8002"),
    ],
)
def test_settings_that_do_not_fit_are_said_in_one_line(
    no_variables: None, tmp_path: Path, given: list[str], said: str
) -> None:
    """Status 2, before anything is opened."""
    chain, _ = certificate(tmp_path)
    command = [sys.executable, "-m", "server", *(part.format(chain=chain) for part in given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_log_names_the_client_behind_a_trusted_proxy(tmp_path: Path) -> None:
    """Counts and lists of clients do, too: they go by the same address."""
    small = Small(tmp_path, trusted_proxies="10.0.0.0/8")
    try:
        seen: list[str | None] = []
        small.service.requests.ended = lambda record, address: seen.append(address)  # type: ignore[method-assign]
        scope = {"type": "http", "method": "GET", "path": "/v2/health/live", "query_string": b""}
        headers = [(b"host", b"x"), (b"x-forwarded-for", b"9.9.9.9"), (b"x-forwarded-for", b"1.1.1.1, 10.0.0.2")]

        async def receive() -> object:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: object) -> None:
            pass

        for peer in ("10.0.0.1", "6.6.6.6"):
            small.run(small.app({**scope, "headers": headers, "client": (peer, 1)}, receive, send))
        assert seen == ["1.1.1.1", "6.6.6.6"]
    finally:
        small.close()
