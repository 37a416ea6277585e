"""What one connection may cost, byte by byte over raw sockets: sizes, counts, deadlines, framing, and how it ends."""

from __future__ import annotations

import json
import queue
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.processes import free_port, rss_mb
from server.http import connection as connection_module
from tests.server.http.one_port import OnePort
from tests.server.tiny import Running, encoded, noise
from tests.waiting import PATIENCE_SECONDS, eventually

PNG = encoded(noise())
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
SIZED = b"Content-Length: %d\r\n" % len(PNG)
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
LAST = b"Connection: close\r\n\r\n"


@pytest.fixture(scope="module")
def admin_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def strict(process: None, repository: Path, admin_port: int) -> Iterator[Running]:
    """A server with short deadlines and small bounds, its log in `text()`."""
    running = Running(
        repository,
        admin_port=admin_port,
        admin_hosts="x",
        max_header_bytes=8192,
        header_seconds=1,
        body_seconds=1,
        min_body_bytes_per_second=20_000,
        keep_alive_seconds=3,
        request_log=True,
    )
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes; a reset counts as the end."""
    answer = b""
    try:
        while data := connection.recv(65536):
            answer += data
    except ConnectionResetError:
        pass
    return answer


def exchange(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """The bytes over one connection, in several pieces, and all that comes back."""
    with connected(port) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server has had enough, and may have said why
        return everything(connection)


def statuses(answer: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer) if found != b"100"]


def problem(answer: bytes, status: int, slug: str) -> None:
    """One answer, a problem document, and the connection is closed."""
    assert statuses(answer) == [status], answer[:500]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\ncontent-type: application/problem+json\r\n" in head + b"\r\n"
    assert b"\r\nconnection: close" in head
    document = json.loads(body)
    assert document["type"] == f"urn:awnet:problem:{slug}"
    assert document["status"] == status
    assert f"x-request-id: {document['request_id']}".encode() in head


# Sizes and counts.


@pytest.mark.parametrize(
    ("request_", "status", "slug"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n" + LAST, 414, "target-too-long"),
        (b"GET /?" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n" + LAST, 414, "target-too-long"),
        (b"GET /" + b"a" * 1_000_000, 414, "target-too-long"),
        (LIVE + b"A: " + b"b" * 9000 + b"\r\n" + LAST, 431, "headers-too-large"),
        (LIVE + b"A: " + b"b" * 1_000_000, 431, "headers-too-large"),
        (LIVE + b"b" * 1_000_000, 431, "headers-too-large"),
        (LIVE + b"A: b\r\n" * 200 + LAST, 431, "headers-too-large"),
        (LIVE + b"A:\r\n" * 100_000, 431, "headers-too-large"),
    ],
    ids=["path", "query", "endless path", "value", "endless value", "endless name", "count", "endless count"],
)
def test_a_header_is_bounded(strict: Running, admin_port: int, request_: bytes, status: int, slug: str) -> None:
    """Its first line, its bytes and its lines, whole or endless, on both ports; the server is as small afterwards."""
    for port in (strict.port, admin_port):
        problem(exchange(port, request_), status, slug)
    assert strict.ready()


def test_a_header_of_the_usual_size_passes(strict: Running) -> None:
    """A cookie or a token of 4 kB, and forty lines."""
    assert statuses(exchange(strict.port, LIVE + b"A: " + b"b" * 4000 + b"\r\n" + b"C: d\r\n" * 40 + LAST)) == [200]


def test_an_endless_header_in_small_pieces_costs_no_memory(strict: Running) -> None:
    """It was once kept whole and copied with every piece: 16 s and 273 MB for one connection."""
    before = rss_mb(strict.pid)
    with connected(strict.port) as connection:
        try:
            connection.sendall(LIVE + b"A: ")
            for _ in range(2000):
                connection.sendall(b"b" * 8192)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert statuses(everything(connection)) in ([431], [])  # [] where the reset overtook the answer
    assert rss_mb(strict.pid) < before + 30


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        (b"1\r\nx\r\n" * 100_000, 400, "malformed-request"),
        (b"5;" + b"e" * 100_000, 431, "headers-too-large"),
        (b"5\r\nhello\r\n0\r\nA: " + b"b" * 100_000, 431, "headers-too-large"),
        (b"5\r\nhello\r\n0\r\n" + b"A: b\r\n" * 100_000, 431, "headers-too-large"),
    ],
    ids=["one-byte chunks", "extension", "trailer", "trailers"],
)
def test_what_frames_a_chunked_body_is_bounded(strict: Running, body: bytes, status: int, slug: str) -> None:
    """Chunks of a byte, their extensions, and trailers cost the server and carry nothing."""
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    problem(exchange(strict.port, head, *(body[at : at + 9000] for at in range(0, len(body), 9000))), status, slug)


def test_many_pipelined_requests_are_bounded(strict: Running) -> None:
    """A read may hold thousands; some are answered in their order, and then the connection ends."""
    answered = statuses(exchange(strict.port, (LIVE + b"\r\n") * 3000))
    assert answered[-1] == 400
    assert 1 < len(answered) < 100
    assert set(answered[:-1]) == {200}


# Deadlines.


@pytest.mark.parametrize("which", ["public", "admin"])
def test_a_silent_client_is_hung_up_on(strict: Running, admin_port: int, which: str) -> None:
    """It has asked nothing, so nothing is answered."""
    with connected(strict.port if which == "public" else admin_port) as connection:
        assert everything(connection) == b""


@pytest.mark.parametrize("which", ["public", "admin"])
def test_a_header_that_trickles_in_is_given_up(strict: Running, admin_port: int, which: str) -> None:
    """Each byte does not begin the time anew."""
    with connected(strict.port if which == "public" else admin_port) as connection:
        begun = time.monotonic()
        try:
            for byte in LIVE + b"A: " + b"b" * 10_000:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
                assert time.monotonic() - begun < PATIENCE_SECONDS
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = everything(connection)
        if answer:  # a reset may overtake it
            problem(answer, 408, "request-timeout")


@pytest.mark.parametrize("framing", [b"Content-Length: 100000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n20\r\n"])
def test_a_body_that_stops_is_given_up(strict: Running, framing: bytes) -> None:
    """After the time that a body has, whatever it announced."""
    with connected(strict.port) as connection:
        connection.sendall(POST + framing + b"half")
        problem(everything(connection), 408, "request-timeout")


def test_a_body_below_the_least_rate_is_given_up(strict: Running) -> None:
    """It comes all the time, 2 kB a second, and would take 50 s."""
    with connected(strict.port) as connection:
        connection.sendall(POST + b"Content-Length: 100000\r\n\r\n")

        def given_up() -> bool:
            try:
                connection.sendall(b"x" * 100)
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        eventually(given_up)
        assert statuses(everything(connection)) in ([408], [])


def test_a_body_above_the_least_rate_is_awaited(strict: Running) -> None:
    """Three times as long as a body has without it."""
    file = PNG + bytes(150_000)
    with connected(strict.port) as connection:
        connection.sendall(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(file))
        for at in range(0, len(file), 5000):
            connection.sendall(file[at : at + 5000])
            time.sleep(0.1)
        assert statuses(everything(connection)) in ([200], [422])


def test_an_idle_connection_is_closed_after_its_time_and_not_before(strict: Running) -> None:
    """Keep-alive has a time of its own, longer here than that of a header."""
    with connected(strict.port) as connection:
        connection.sendall(LIVE + b"\r\n")
        assert statuses(connection.recv(65536)) == [200]
        time.sleep(1.5)
        connection.sendall(LIVE + b"\r\n")
        assert statuses(connection.recv(65536)) == [200]
        assert everything(connection) == b""


def test_a_client_that_takes_no_answer_does_not_stay(strict: Running) -> None:
    """Ever more answers that nobody reads end in pipelined requests that are not read either, and then in the time."""
    with connected(strict.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1)
        try:
            for _ in range(200):
                connection.sendall((b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") * 16)
        except TimeoutError:
            pass  # the server does not read on
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert strict.ready()


# What HTTP leaves to the server.


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.0, h2c"])
@pytest.mark.parametrize("pieces", [1, 2, 40])
def test_an_upgrade_is_ignored(strict: Running, upgrade: bytes, pieces: int) -> None:
    """RFC 9110, 7.8. The body is no second request, and the connection goes on."""
    ask = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nUpgrade: " + upgrade
    smuggled = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    whole = POST + ask + b"\r\n" + SIZED + b"\r\n" + PNG
    whole += POST + ask + b"\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(PNG) + PNG + b"\r\n0\r\n\r\n"
    whole += POST + ask + b"\r\nContent-Length: %d\r\n\r\n" % len(smuggled) + smuggled
    whole += LIVE + ask + b"\r\n\r\n" + LIVE + LAST
    step = -(-len(whole) // pieces)
    answer = exchange(strict.port, *(whole[at : at + step] for at in range(0, len(whole), step)))
    assert statuses(answer) == [200, 200, 415, 200, 200]


def test_a_half_closed_client_gets_its_answer(strict: Running) -> None:
    """It has said that it sends nothing more; it still reads."""
    for asked in (LIVE + b"\r\n", POST + SIZED + b"\r\n" + PNG, (POST + SIZED + b"\r\n" + PNG) * 3):
        with connected(strict.port) as connection:
            connection.sendall(asked)
            connection.shutdown(socket.SHUT_WR)
            assert statuses(everything(connection)) == [200] * asked.count(b" HTTP/1.1")


def test_a_half_closed_client_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have gone; what is done for it is told so after a while, and not before."""
    monkeypatch.setattr(connection_module, "HALF_CLOSED_SECONDS", 0.3)
    messages: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            messages.put(((await receive())["type"], time.monotonic()))

    port = OnePort(app=app)
    try:
        with port.connected() as client:
            client.sendall(LIVE + b"\r\n")
            assert messages.get(timeout=PATIENCE_SECONDS)[0] == "http.request"
            closed = time.monotonic()
            client.shutdown(socket.SHUT_WR)
            message, at = messages.get(timeout=PATIENCE_SECONDS)
        assert message == "http.disconnect" and at - closed >= 0.3
    finally:
        port.close()


@pytest.mark.parametrize(
    "asked",
    [LIVE, LIVE[:10], POST + SIZED + b"\r\n" + PNG[:100], POST + b"Transfer-Encoding: chunked\r\n\r\n4\r\nabcd"],
)
def test_half_a_request_of_a_half_closed_client_is_told_so(strict: Running, asked: bytes) -> None:
    """It cannot become whole any more."""
    with connected(strict.port) as connection:
        connection.sendall(asked)
        connection.shutdown(socket.SHUT_WR)
        problem(everything(connection), 400, "malformed-request")


def test_a_trailer_overrides_no_header(strict: Running) -> None:
    """What was decided by the header stays decided."""
    body = b"%x\r\n" % len(PNG) + PNG + b"\r\n0\r\nContent-Type: text/plain\r\nAccept: text/html\r\n"
    body += b"X-Request-Id: trailing\r\nContent-Encoding: gzip\r\n\r\n"
    answer = exchange(strict.port, POST + b"Transfer-Encoding: chunked\r\nX-Request-Id: leading\r\n" + LAST + body)
    assert statuses(answer) == [200]
    assert b"x-request-id: leading" in answer


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        (b"Transfer-Encoding: gzip, chunked\r\n", 501),
        (b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", 501),
        (b"Transfer-Encoding: CHUNKED\r\n", 200),
        (b"Transfer-Encoding: chunked, gzip\r\n", 400),
        (b"Transfer-Encoding: gzip\r\n", 400),
    ],
)
def test_no_transfer_coding_but_chunked_is_understood(strict: Running, coding: bytes, status: int) -> None:
    """A body that cannot be read is not read as if it were plain."""
    answer = exchange(strict.port, POST + coding + LAST + b"%x\r\n" % len(PNG) + PNG + b"\r\n0\r\n\r\n")
    assert statuses(answer) == [status]


@pytest.mark.parametrize(
    "hosts",
    [b"", b"Host: a\r\nHost: a\r\n", b"Host: a\r\nHost: b\r\n", b"Host: a b\r\n", b"Host: a/b\r\n", b"Host: a, b\r\n"],
)
def test_a_request_has_one_host(strict: Running, admin_port: int, hosts: bytes) -> None:
    """RFC 9112, 3.2."""
    for port in (strict.port, admin_port):
        problem(exchange(port, b"GET /v2/health/live HTTP/1.1\r\n" + hosts + LAST), 400, "malformed-request")


@pytest.mark.parametrize("host", [b"Host:\r\n", b"Host: [::1]:8000\r\n", b"Host: a.example:80\r\n", b"hOsT: x\r\n"])
def test_a_usual_host_passes(strict: Running, host: bytes) -> None:
    """A name, an address, a port, or nothing where the target has none."""
    assert statuses(exchange(strict.port, b"GET /v2/health/live HTTP/1.1\r\n" + host + LAST)) == [200]


def test_http_1_0_needs_no_host_and_ends_with_its_answer(strict: Running) -> None:
    """As old health checks send it."""
    answer = exchange(strict.port, b"GET /v2/health/live HTTP/1.0\r\n\r\n")
    assert statuses(answer) == [200]


BROKEN = {
    "no http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hello\r\n\r\n",
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: x\r\n\r\n",
    "space before the colon": LIVE + b"A : b\r\n\r\n",
    "a control character": LIVE + b"A: \0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no length": POST + b"Content-Length: five\r\n\r\nhello",
    "chunks in http/1.0": b"POST /predict HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk without a size": POST + b"Transfer-Encoding: chunked\r\n\r\nhello\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_framing_is_a_problem_document(strict: Running, admin_port: int, name: str) -> None:
    """On both ports, and the connection ends: nobody knows where the next request would begin."""
    for port in (strict.port, admin_port):
        answer = exchange(port, BROKEN[name])
        status = 405 if statuses(answer) == [405] else 400  # the admin port has no /predict, the head is whole
        assert statuses(answer)[0] in (400, 404, 405, 505), (status, answer)
        assert b"application/problem+json" in answer
        assert b"connection: close" in answer


def test_other_versions_and_tunnels_are_not_spoken(strict: Running) -> None:
    """Said as HTTP has it."""
    problem(exchange(strict.port, b"GET / HTTP/2.0\r\nHost: x\r\n\r\n"), 505, "version-not-supported")
    problem(exchange(strict.port, b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"), 501, "not-implemented")


def test_broken_framing_is_counted_and_does_not_flood_the_log(strict: Running) -> None:
    """One line each in the request log, where that is on, and none elsewhere."""
    strict.http.get("/nothing", headers={"x-request-id": "before-them"})
    eventually(lambda: "before-them" in strict.text())  # and with it whatever was asked before
    lines = len(strict.text().splitlines())
    for _ in range(50):
        exchange(strict.port, b"nonsense\r\n\r\n")
    eventually(lambda: len(strict.text().splitlines()) >= lines + 50)
    written = strict.text().splitlines()[lines:]
    assert all(json.loads(line)["reason"] == "malformed-request" for line in written)
    assert len(written) == 50
    metrics = strict.http.get("/metrics").text
    counted = re.search(r'awnet_rejections_total\{reason="malformed-request"\} (\d+)', metrics)
    assert counted is not None
    assert int(counted[1]) >= 50


def test_an_answer_before_its_body_is_read_ends_the_connection_in_peace(strict: Running) -> None:
    """The client is still sending and must see the answer, not a reset."""
    with connected(strict.port) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n")
        connection.sendall(b"x" * 3_000_000)
        problem(everything(connection), 404, "not-found")


def test_what_comes_behind_the_last_request_is_not_read(strict: Running) -> None:
    """`Connection: close` means it."""
    assert statuses(exchange(strict.port, LIVE + LAST + LIVE + LAST)) == [200]


# How many.


@pytest.fixture
def few(process: None, repository: Path) -> Iterator[Running]:
    """A server with a handful of connections and 1 MiB for bodies."""
    running = Running(
        repository,
        max_connections=12,
        max_connections_per_client=8,
        max_held_bytes=1 << 20,
        header_seconds=60,
        body_seconds=60,
    )
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def from_address(running: Running, address: str) -> socket.socket:
    """A connection of another client: all of 127/8 is this machine."""
    made = socket.create_connection(("127.0.0.1", running.port), PATIENCE_SECONDS, (address, 0))
    return made


def alive(connection: socket.socket) -> bool:
    connection.settimeout(0.02)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionResetError:
        return False


def test_a_client_that_opens_many_connections_loses_its_own(few: Running) -> None:
    """The oldest that wait go; the clients of other addresses keep theirs and find room."""
    good = from_address(few, "127.0.0.2")
    good.sendall(LIVE + b"\r\n")
    assert statuses(good.recv(65536)) == [200]
    silent = [from_address(few, f"127.0.0.{3 + n % 3}") for n in range(60)]
    eventually(lambda: sum(map(alive, silent)) <= 12)
    good.settimeout(PATIENCE_SECONDS)
    good.sendall(LIVE + b"\r\n")
    assert statuses(good.recv(65536)) == [200]
    late = from_address(few, "127.0.0.9")
    late.sendall(POST + SIZED + b"\r\n" + PNG)
    assert statuses(late.recv(65536)) == [200]
    for connection in (good, late, *silent):
        connection.close()


def test_stalled_uploads_hold_a_bounded_number_of_bytes(few: Running) -> None:
    """The slowest are given up with 503, and a small upload beside them is answered."""
    before = rss_mb(few.pid)
    stalled = []
    for n in range(12):
        connection = from_address(few, f"127.0.1.{n}")
        connection.sendall(POST + b"Content-Length: 5000000\r\n\r\n" + b"x" * 400_000)
        stalled.append(connection)
    good = from_address(few, "127.0.0.2")
    good.sendall(POST + SIZED + b"\r\n" + PNG)
    assert statuses(good.recv(65536)) == [200]
    refused = [connection for connection in stalled if statuses_now(connection) == [503]]
    assert 8 <= len(refused) <= 11
    assert rss_mb(few.pid) < before + 30
    for connection in (good, *stalled):
        connection.close()


def statuses_now(connection: socket.socket) -> list[int]:
    """Of what has come already."""
    connection.settimeout(0.5)
    try:
        return statuses(connection.recv(65536))
    except (TimeoutError, ConnectionResetError):
        return []
