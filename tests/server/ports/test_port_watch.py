"""Readiness hangs on every port: one that has died, or takes no connections, turns it off and is told in the log."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from pathlib import Path

import httpx
import pytest

from benchmarks.harness.processes import free_port
from server.oip import grpc_probe
from server.oip.grpc_front import GrpcFront
from server.oip.grpc_probe import Probe
from server.ports.listening import PortWatch, listen
from server.ports.tls import Certificates
from tests.server.http.one_port import certificate
from tests.server.small import Small
from tests.server.tiny import Running
from tests.waiting import eventually, until


def test_a_port_in_trouble_is_told_once_and_again_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    """Readiness is asked every second; the log says it when it changes."""
    watch, trouble = PortWatch(), {"why": "its socket is closed"}
    watch.add("admin", lambda: trouble.get("why"))
    watch.add("public", lambda: None)
    caplog.set_level(logging.WARNING, "awnet")
    watch.look()
    watch.look()
    assert watch.troubled == {"admin"}
    trouble.clear()
    watch.look()
    assert watch.troubled == set()
    assert caplog.messages == [
        "not ready: the admin port takes no connections: its socket is closed",
        "the admin port takes connections again",
    ]


@pytest.mark.parametrize("secure", [False, True])
def test_readiness_goes_where_the_grpc_server_has_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, secure: bool
) -> None:
    """However it came to that: HTTP goes on, and would bring it clients that nobody answers."""
    small = Small(tmp_path / "repository")
    certificates = Certificates(*certificate(tmp_path)) if secure else None
    front = GrpcFront(small.service, "127.0.0.1", 0, certificates=certificates)
    port = small.run(front.start())
    small.service.ports.add("gRPC", front.trouble)
    ports = small.service.ports
    ports.look()
    assert small.service.ready
    assert small.run(Probe("127.0.0.1", port, secure).once()) is None
    small.run(front._server.stop(0))  # type: ignore[union-attr]
    ports.look()
    assert not small.service.ready
    assert small.http("GET", "/v2/health/ready")[0] == 503
    assert "not ready: the gRPC port takes no connections: its server has ended" in caplog.messages
    assert small.run(Probe("127.0.0.1", port, secure).once()) == "nobody listens there"
    small.run(front.stop(0))
    small.close()


def test_a_port_that_nobody_accepts_from_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes connections for a process that does not: only an answer shows that somebody is there."""
    monkeypatch.setattr(grpc_probe, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(grpc_probe, "PROBE_SECONDS", 0.0)
    (listening,) = listen("127.0.0.1", 0, "--grpc-port")

    async def go() -> str | None:
        probe = Probe("127.0.0.1", listening.getsockname()[1], False)
        running = asyncio.create_task(probe.run())
        await until(lambda: probe.failure is not None)
        running.cancel()
        return probe.failure

    with listening:
        assert asyncio.run(asyncio.wait_for(go(), 30)) == "no answer within 0.2 s"


def test_a_port_that_is_full_takes_connections(tmp_path: Path) -> None:
    """It hangs up at once; a stranger who fills it must not turn readiness off."""
    small = Small(tmp_path, max_connections=2)
    front = GrpcFront(small.service, "127.0.0.1", 0)
    port = small.run(front.start())
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    assert small.run(Probe("127.0.0.1", port, False).once()) is None
    for connection in held:
        connection.close()
    small.run(front.stop(0))
    small.close()


# A server whose ports can be broken by signals: the admin port listens no more, the gRPC server ends.
BREAKABLE = """
import asyncio, signal, sys
from server.process import process
opened, begun = process.open_ports, process.Server._start_others
def kept(settings):
    sockets = opened(settings)
    signal.signal(signal.SIGUSR1, lambda *_: sockets["admin"][0].shutdown(2))
    return sockets
async def others(server, shared=False):
    await begun(server, shared)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR2, lambda: loop.create_task(server._grpc._server.stop(0)))
process.open_ports, process.Server._start_others = kept, others
from server.__main__ import main
sys.exit(main([]))
"""


class Breakable(Running):
    def start(self) -> None:
        self.command = [self.command[0], "-c", BREAKABLE]
        super().start()


@pytest.mark.process
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (signal.SIGUSR1, "the admin port takes no connections: its socket does not listen"),
        (signal.SIGUSR2, "the gRPC port takes no connections: its server has ended"),
    ],
)
def test_a_running_server_says_which_port_it_has_lost(repository: Path, broken: signal.Signals, why: str) -> None:
    """And answers on the others; SIGTERM ends it as ever."""
    server = Breakable(repository, admin_port=free_port(), grpc_port=free_port())
    try:
        server.wait_ready()
        server.send(broken)
        eventually(lambda: not server.ready(), what="readiness is off")
        eventually(lambda: why in server.text(), what="the log says why")
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
    finally:
        assert server.stop() == 0
