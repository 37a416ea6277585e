"""Keys on a real server of two workers: each has them, on open connections too, for bytes of any kind."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.harness.processes import free_port
from tests.server.keys import key, table, write
from tests.server.tiny import CALL, Running, publish
from tests.waiting import eventually

OPEN_TO_OPS = (table("ops"), table("shop", ["predict"]))


class Keyed(Running):
    """Two workers that want keys."""

    def __init__(self, folder: Path) -> None:
        self.keys = write(folder / "keys.toml", *OPEN_TO_OPS)
        self.admin = free_port()
        super().__init__(publish(folder / "models"), workers=2, admin_port=self.admin, threads=1, api_keys=self.keys)

    def status(self, path: str, name: str | None) -> int:
        """Over a connection of its own, so that any worker may answer."""
        headers = {} if name is None else {"x-api-key": key(name)}
        base = f"http://127.0.0.1:{self.admin}" if path.startswith("/admin") else self.url
        return httpx.get(f"{base}{path}", headers=headers, **CALL).status_code

    def raw(self, *lines: bytes, method: bytes = b"GET", path: bytes = b"/model") -> bytes:
        """The answer to a request with these header lines, as bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as client:
            head = [b"%s %s HTTP/1.1" % (method, path), b"Host: a", b"Connection: close", *lines, b"", b""]
            with contextlib.suppress(ConnectionError):
                client.sendall(b"\r\n".join(head))
            received = b""
            with contextlib.suppress(ConnectionError):
                while part := client.recv(65536):
                    received += part
            return received


@pytest.fixture(scope="module")
def keyed(process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    running = Keyed(tmp_path_factory.mktemp("keyed"))
    try:
        running.wait_ready()
        eventually(
            lambda: "awnet_workers_up 2.0" in running.http.get("/metrics", headers={"x-api-key": key("ops")}).text
        )
        yield running
    finally:
        running.stop(signal.SIGINT)


def test_every_worker_and_every_port_wants_a_key(keyed: Keyed) -> None:
    """Health does not."""
    for _ in range(8):
        assert keyed.status("/model", None) == 401
        assert keyed.status("/model", "shop") == 200
        assert keyed.status("/admin/models", None) == 401
        assert keyed.status("/admin/models", "shop") == 403
        assert keyed.status("/admin/models", "ops") == 200
        assert keyed.status("/v2/health/ready", None) == 200


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([b"Authorization: Bearer " + key("shop").encode()], b"200"),
        ([b"AUTHORIZATION:bearer " + key("shop").encode() + b"  "], b"200"),
        ([b"X-Api-Key: " + key("shop").encode()], b"200"),
        ([b"Authorization: Bearer " + key("shop").encode()] * 2, b"401"),
        ([b"Authorization: Bearer " + key("shop").encode(), b"X-API-Key: " + key("shop").encode()], b"401"),
        ([b"Authorization: Bearer \xc3\xa9" + key("shop").encode()], b"401"),
        ([b"Authorization:"], b"401"),
        ([b"Authorization: Bearer " + b"a" * 20_000], b"401"),
        ([b"Authorization: Bearer " + b"a" * 100_000], b"431"),
        ([b"Authorization : Bearer " + key("shop").encode()], b"400"),
        ([b"X-Api_Key: " + key("shop").encode()], b"401"),
        ([b"Cookie: Authorization=" + key("shop").encode()], b"401"),
    ],
)
def test_headers_as_strangers_write_them(keyed: Keyed, lines: list[bytes], status: bytes) -> None:
    """One known key in one header passes, and nothing else does."""
    answer = keyed.raw(*lines)
    assert answer.split(b" ", 2)[1] == status
    assert b"awnet_" not in answer


def test_a_trailer_and_an_address_bring_no_key(keyed: Keyed) -> None:
    """What comes behind the body changes nothing any more, and a key in the address is refused."""
    trailer = b"Authorization: Bearer " + key("shop").encode()
    body = b"0\r\n" + trailer
    assert b" 401 " in keyed.raw(b"Transfer-Encoding: chunked", b"", body, method=b"POST", path=b"/predict")
    for name in (b"key", b"api_key", b"access_token", b"x-api-key", b"%61uthorization"):
        answer = keyed.raw(b"X-API-Key: " + key("shop").encode(), path=b"/model?" + name + b"=" + key("shop").encode())
        assert b" 401 " in answer and b"awnet_" not in answer


def test_a_stranger_is_not_asked_for_the_body(keyed: Keyed) -> None:
    """No 100 Continue is sent; the answer is the refusal."""
    answer = keyed.raw(b"Expect: 100-continue", b"Content-Length: 5000000", method=b"POST", path=b"/predict")
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_a_revoked_key_is_refused_on_open_connections(keyed: Keyed) -> None:
    """By each worker, within seconds and without a signal; the key that took its place is known by then."""
    headers, clients = {"x-api-key": key("shop")}, [httpx.Client(base_url=keyed.url, **CALL) for _ in range(6)]
    try:
        assert {client.get("/model", headers=headers).status_code for client in clients} == {200}
        write(keyed.keys, table("ops"), table("other", ["predict"]))
        eventually(lambda: {client.get("/model", headers=headers).status_code for client in clients} == {401}, 20)
        new = {"x-api-key": key("other")}
        assert {client.get("/model", headers=new).status_code for client in clients} == {200}
    finally:
        for client in clients:
            client.close()
        write(keyed.keys, *OPEN_TO_OPS)
        eventually(lambda: {keyed.status("/model", "shop") for _ in range(8)} == {200}, 20)


def test_a_wrong_file_is_counted_by_each_worker_and_its_log_holds_no_key(keyed: Keyed) -> None:
    """The keys from before stay."""
    ops = {"x-api-key": key("ops")}

    def counted(result: str) -> float:
        text = keyed.http.get("/metrics", headers=ops).text
        (line,) = (
            line for line in text.splitlines() if line.startswith(f'awnet_keys_reads_total{{result="{result}"}}')
        )
        return float(line.split()[-1])

    before, loaded = counted("refused"), counted("loaded")
    try:
        keyed.keys.write_text(f'[keys.{key("shop")}]\nsha256 = "{key("shop")}"\n', "utf-8")
        eventually(lambda: counted("refused") == before + 2, 20)
        assert {keyed.status("/model", "shop") for _ in range(8)} == {200}
    finally:
        write(keyed.keys, *OPEN_TO_OPS)
        eventually(lambda: counted("loaded") >= loaded + 2, 20)
    said = keyed.text()
    assert said.count("the keys from before stay") == 2
    assert "awnet_" not in said.replace("awnet_worker", "")
