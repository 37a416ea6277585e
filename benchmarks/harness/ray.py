"""`python -m awnet.ray` on free ports of 127.0.0.1, and the processes of its replicas."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path

from .processes import Process, family, free_port

REPLICA, SCORER = b"ray::ServeReplica", b"ray::MapWorker"  # what Ray Serve and Ray Data call the process of one
START_SECONDS = 400  # a Ray starts ten processes that import a lot: ten seconds, minutes where much else computes


class RayServe(Process):
    """A Ray of this machine with so many replicas, each with one thread.

    Args:
        folder: receives its log, and what Ray keeps in the home of whoever runs it.
        settings: as in `server.settings`.
    """

    def __init__(self, folder: Path, replicas: int = 2, **settings: object) -> None:
        self.port, self.metrics_port = free_port(), free_ports(replicas)
        self.url = f"http://127.0.0.1:{self.port}"
        self.replicas = replicas
        given = {"port": self.port, "threads": 1, "metrics_port": self.metrics_port, **settings}
        environment = {f"AWNET_{name.upper()}": str(value) for name, value in given.items()}
        count = str(replicas)
        command = [sys.executable, "-m", "awnet.ray", "--min-replicas", count, "--max-replicas", count]
        super().__init__(command, folder / "ray.log", environment | variables(folder))

    def wait_ready(self) -> None:
        """Wait until every replica answers."""
        for number in range(self.replicas):
            self.answering(f"http://127.0.0.1:{self.metrics_port + number}/metrics", START_SECONDS)
        self.answering(f"{self.url}/v2/health/ready", START_SECONDS)

    def pids(self) -> list[int]:
        """Of the replicas that run."""
        return below(self.pid, REPLICA)


def variables(folder: Path) -> dict[str, str]:
    """Of a Ray that keeps what it writes into a home in `folder`.

    Its workers are as urgent as whoever started it: Ray gives them niceness 15, which would measure who else computes.
    """
    return {"HOME": str(folder), "RAY_worker_niceness": "0", "RAY_raylet_start_wait_time_s": str(START_SECONDS)}


def below(pid: int, name: bytes) -> list[int]:
    """Processes that Ray has named so, among those that `pid` has started, or they have."""
    found = []
    for child in family(pid)[1:]:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(name):
                found.append(child)
    return found


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that are free."""
    while True:
        first = free_port()
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(first, first + count):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
