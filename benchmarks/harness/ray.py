"""`python -m awnet.ray` on free ports of 127.0.0.1, the processes of its replicas, and a cluster on the loopback."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from types import TracebackType

from .processes import Process, family, free_port
from .waiting import eventually

REPLICA, SCORER = b"ray::ServeReplica", b"ray::MapWorker"  # what Ray Serve and Ray Data call the process of one
OBJECT_STORE_BYTES = 200_000_000
JOINS = {"RAY_AUTH_MODE": "token"}  # a head finds the token by itself; who joins it at an address has to be told
START_SECONDS = 400  # a Ray starts ten processes that import a lot: ten seconds, minutes where much else computes


class RayNode(Process):
    """A node of a cluster on this machine: `ray start`, with an address of its own of the loopback.

    Args:
        folder: receives its log; of the head, what Ray keeps, too.
        number: of the node; 0 is the head.
        cores: as many as Ray is told that it has.
        head: address of the head, for another node.
    """

    def __init__(self, folder: Path, number: int, cores: int, head: str | None = None) -> None:
        # Ray takes 127.0.0.1 for a mistake, and looks for an address that other machines reach.
        self.host = f"127.0.0.{number + 2}"
        self.address = head or f"{self.host}:{free_port()}"
        port = self.address.rpartition(":")[2]
        alone = ["--head", "--port", port, "--temp-dir", str(folder / "ray"), "--include-dashboard", "false"]
        joins = ["--address", head] if head else alone
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", *joins, "--node-ip-address", self.host]
        command += ["--num-cpus", str(cores), "--object-store-memory", str(OBJECT_STORE_BYTES), "--disable-usage-stats"]
        command += ["--min-worker-port", "0", "--max-worker-port", "0"]
        super().__init__(command, folder / f"node-{number}.log", variables(folder) | JOINS)

    def wait_ready(self) -> None:
        """Wait until it is one of the cluster."""

        def started() -> bool:
            if not self.running:
                raise self.failure()
            return "Ray runtime started" in self.text()

        eventually(started, START_SECONDS, "the node has started")

    def kill(self) -> None:
        """End all of its processes at once by SIGKILL, as a machine that loses its power."""
        for pid in family(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.popen.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self.kill()


class RayCluster(contextlib.ExitStack):
    """Nodes on this machine, each with so many cores; the first is the head. Leaving the `with` block ends them.

    Args:
        folder: receives their logs, and what Ray keeps; its path is short, since sockets are below it.
        cores: of each node.
    """

    def __init__(self, folder: Path, *cores: int) -> None:
        super().__init__()
        self.folder = folder
        self.nodes: list[RayNode] = []
        token = folder / ".ray/auth_token"  # of `ray get-auth-token`: who has none reaches no port of the cluster
        token.parent.mkdir()
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        try:
            for count in cores:
                self.add(count).wait_ready()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Of the head, for whoever joins."""
        return self.nodes[0].address

    def add(self, cores: int) -> RayNode:
        """Start a further node."""
        head = self.address if self.nodes else None
        self.nodes.append(self.enter_context(RayNode(self.folder, len(self.nodes), cores, head)))
        return self.nodes[-1]

    def below(self, name: bytes) -> dict[int, list[int]]:
        """Processes that Ray has named so, by the number of their node."""
        return {number: below(node.pid, name) for number, node in enumerate(self.nodes)}


class RayServe(Process):
    """`python -m awnet.ray` with so many replicas, each with one thread.

    Args:
        folder: receives its log, and what Ray keeps in the home of whoever runs it.
        replicas: at most; at least as many, too, unless `least` is given.
        cluster: on which they run, in place of a Ray of this machine.
        settings: as in `server.settings`.
    """

    def __init__(
        self,
        folder: Path,
        replicas: int = 2,
        least: int | None = None,
        cluster: RayCluster | None = None,
        **settings: object,
    ) -> None:
        self.port, self.metrics_port = free_port(), free_ports(replicas)
        self.url = f"http://127.0.0.1:{self.port}"
        self.replicas, self.least = replicas, replicas if least is None else least
        self.cluster = cluster
        options = {"port": self.port, "threads": 1, "metrics_port": self.metrics_port, **settings}
        environment = {f"AWNET_{name.upper()}": str(value) for name, value in options.items()}
        command = [sys.executable, "-m", "awnet.ray", "--min-replicas", str(self.least)]
        command += ["--max-replicas", str(replicas), *(["--address", cluster.address] if cluster else [])]
        joins = JOINS if cluster else {}
        super().__init__(command, folder / "serve.log", environment | variables(folder) | joins)

    def wait_ready(self) -> None:
        """Wait until as many replicas answer as there are at least."""
        for number in range(self.least):
            self.answering(f"http://127.0.0.1:{self.metrics_port + number}/metrics", START_SECONDS)
        self.answering(f"{self.url}/v2/health/ready", START_SECONDS)

    def pids(self) -> list[int]:
        """Of the replicas that run."""
        if self.cluster is None:
            return below(self.pid, REPLICA)
        return [pid for pids in self.cluster.below(REPLICA).values() for pid in pids]


def variables(folder: Path) -> dict[str, str]:
    """Of a Ray that keeps what it writes into a home in `folder`.

    Its workers are as urgent as whoever started it: Ray gives them niceness 15, which would measure who else computes.
    """
    patience = {
        "RAY_raylet_start_wait_time_s": START_SECONDS,
        "RAY_agent_register_timeout_ms": 1000 * START_SECONDS,
        "RAY_worker_register_timeout_seconds": START_SECONDS,
    }
    return {"HOME": str(folder), "RAY_worker_niceness": "0", **{name: str(value) for name, value in patience.items()}}


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
