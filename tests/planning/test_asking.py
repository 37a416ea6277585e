"""The client of measurements: each request ends, whatever the server does."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable

import pytest

from awnet.planning.asking import Asker, Sample, post
from benchmarks.harness.processes import free_port

REQUEST = post("/predict", b"image", {"Content-Type": "image/png"})


class Patient(http.server.BaseHTTPRequestHandler):
    """Answers in two pieces, after a hundredth of a second."""

    protocol_version = "HTTP/1.1"
    connections = 0

    def setup(self) -> None:
        super().setup()
        type(self).connections += 1

    def do_POST(self) -> None:
        assert self.rfile.read(int(self.headers["Content-Length"])) == b"image"
        time.sleep(0.01)
        self.send_response(200)
        self.send_header("Server-Timing", "decode;dur=0.5, inference;dur=1.5")
        self.send_header("Content-Length", "2")
        self.end_headers()
        time.sleep(0.001)
        self.wfile.write(b"{}")

    def log_message(self, *given: object) -> None: ...


class Leaving(Patient):
    """Answers once on a connection, and closes it the next time."""

    asked = 0

    def do_POST(self) -> None:
        self.asked += 1
        if self.asked == 1:
            super().do_POST()
        else:
            self.close_connection = True


class Parting(Patient):
    """Says that it closes the connection, and does."""

    def end_headers(self) -> None:
        self.send_header("Connection", "close")
        super().end_headers()


def asked(
    handler: type[Patient], ask: Callable[[Asker], list[Sample]], connections: int = 4
) -> tuple[list[Sample], int]:
    """What came of it, and how many connections were opened."""
    handler = type("Handler", (handler,), {"connections": 0})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with Asker([("127.0.0.1", server.server_port)], REQUEST, connections) as asker:
                samples = ask(asker)
        finally:
            server.shutdown()
            thread.join()
    return samples, handler.connections


def test_an_open_loop_sends_whether_or_not_it_is_answered() -> None:
    """Twenty at once over four connections wait for each other: latency counts from when each was due."""
    samples, connections = asked(Patient, lambda asker: asker.offered([0.0] * 20))
    assert [sample.status for sample in samples] == [200] * 20 and connections == 4
    assert min(s.seconds for s in samples) > 0.01 and max(s.seconds for s in samples) > 0.05
    assert len({sample.due for sample in samples}) == 1


def test_stages_are_those_of_the_server() -> None:
    samples, _ = asked(Patient, lambda asker: asker.offered([0.0]))
    assert samples[0].stages() == {"decode": 0.0005, "inference": 0.0015}


def test_a_closed_loop_asks_again_once_it_is_answered() -> None:
    samples, connections = asked(Patient, lambda asker: asker.closed(3, 0.5))
    assert {sample.status for sample in samples} == {200} and 6 <= len(samples) <= 153 and connections == 3


def test_a_connection_that_is_closed_ends_its_request() -> None:
    """And another one is opened for the next."""
    samples, _ = asked(Leaving, lambda asker: asker.offered([at / 100 for at in range(12)]))
    statuses = [sample.status for sample in samples]
    assert len(statuses) == 12 and {*statuses} == {0, 200}


def test_a_connection_that_the_server_parts_with_is_not_used_again() -> None:
    samples, connections = asked(Parting, lambda asker: asker.offered([at / 50 for at in range(6)]))
    assert [sample.status for sample in samples] == [200] * 6 and connections == 6


def test_of_two_servers_the_one_with_fewer_under_way_is_asked() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Patient) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with Asker([("127.0.0.1", server.server_port)] * 2, REQUEST) as asker:
                samples = asker.offered([0.0] * 6)
        finally:
            server.shutdown()
            thread.join()
    assert [sample.target for sample in samples] == [0, 1] * 3


def test_a_server_that_has_gone_is_an_error() -> None:
    with Asker([("127.0.0.1", free_port())], REQUEST) as asker, pytest.raises(ConnectionRefusedError):
        asker.offered([0.0])
