"""Programs on free ports of 127.0.0.1: the server, haproxy before it, Triton behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .exchange import exposition, fetch, get, seconds_until
from .report import ROOT
from .waiting import eventually

HAPROXY_CONFIG = ROOT / "deploy/haproxy.cfg"
PROXY = "127.0.0.2"  # where haproxy speaks from; whoever asks a replica directly is at 127.0.0.1
BEHIND_HAPROXY = {"trusted_proxies": PROXY, "proxy_protocol": True}  # settings of a replica


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A program; leaving the `with` block ends it.

    Args:
        log: receives what it says; None: it says it where this process does.
        environment: in place of every AWNET_ variable of this process.
        folder: where it runs.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path | None = None,
        environment: dict[str, str] | None = None,
        folder: Path = ROOT,
    ) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("AWNET_")}
        self.command, self.log, self.folder = [*map(str, command)], log, folder
        self._environment = clean | (environment or {})
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self.log.open("ab")) if self.log else None
            self.popen = subprocess.Popen(
                self.command, cwd=self.folder, env=self._environment, stdout=log, stderr=log and subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def failure(self) -> RuntimeError:
        """That it has ended, and the end of its log."""
        return RuntimeError(f"{self.command[0]} ended with status {self.popen.returncode}:\n{self.text()[-2000:]}")

    def answering(self, url: str, seconds: float = 60) -> None:
        """Wait until a GET of `url` succeeds; where it does not, end the process and raise what failed."""

        def answers() -> bool:
            if not self.running:
                raise self.failure()
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return True
            except OSError:  # URLError and HTTPError too
                return False

        try:
            eventually(answers, seconds, f"{url} answers")
        except BaseException:
            self.stop()
            raise

    def send(self, sig: signal.Signals) -> None:
        self.popen.send_signal(sig)

    async def gone(self, seconds: float) -> int:
        """Its exit status, or TimeoutError."""
        deadline = time.monotonic() + seconds
        while (status := self.popen.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.command[0]} did not end within {seconds:g} s")
            await asyncio.sleep(0.01)
        return status

    def cpu_seconds(self) -> float:
        """CPU time that it has used, user and system."""
        return cpu_seconds(self.pid)

    def text(self) -> str:
        """Its log so far; nothing where it has none."""
        return self.log.read_text("utf-8", "replace") if self.log else ""

    def stop(self, sig: signal.Signals = signal.SIGTERM, seconds: float = 60) -> int:
        """Its status after this signal, or after SIGKILL where it has not ended within `seconds`."""
        if self.running:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.send_signal(sig)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Server(Process):
    """`python -m server` on a port of its own, without an admin port; `settings` as in `server.settings`.

    Args:
        folder: receives its log; None: it logs where this process does.
        checkout: whose server it is.
    """

    def __init__(self, folder: Path | None = None, checkout: Path = ROOT, **settings: object) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        given = {"port": self.port, "admin_port": "none", **settings}
        environment = {f"AWNET_{name.upper()}": str(value) for name, value in given.items()}
        log = folder / f"server-{self.port}.log" if folder else None
        super().__init__([sys.executable, "-m", "server"], log, environment, checkout)

    def wait_ready(self, seconds: float = 60) -> None:
        """Wait until readiness is reported; where it is not, the server is ended."""
        self.answering(f"{self.url}/v2/health/ready", seconds)

    async def until_ready(self, seconds: float = 60) -> None:
        """The same beside other work."""
        await seconds_until(lambda: get(self.port, "/v2/health/ready"), seconds, self)

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its full name, labels included."""
        return exposition(await fetch(self.port, "/metrics"))


class Triton(Process):
    """A real Triton, as `deploy/triton/run.py` runs it.

    Args:
        repository: as `export.triton_python` writes it.
        venv: an environment with the wheel of Triton.
        options: more of that program's.
    """

    def __init__(
        self, repository: Path, venv: Path, log: Path, *options: str, environment: dict[str, str] | None = None
    ) -> None:
        self.http, self.grpc, self.metrics = free_port(), free_port(), free_port()
        command: list[str | Path] = [sys.executable, ROOT / "deploy/triton/run.py", "--venv", venv.absolute()]
        command += ["--repository", repository]
        command += ["--http-port", str(self.http), "--grpc-port", str(self.grpc), "--metrics-port", str(self.metrics)]
        super().__init__([*command, *options], log, environment)

    async def until_ready(self) -> None:
        """Wait until the model can be asked."""
        await seconds_until(lambda: get(self.http, "/v2/models/awnet/ready"), 90, self)

    def signal_server(self, sig: signal.Signals) -> None:
        """To the server itself, past the program that runs it."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text("ascii").split()
        os.kill(int(children[0]), sig)

    def stop(self, sig: signal.Signals = signal.SIGTERM, seconds: float = 60) -> int:
        if self.running:
            with contextlib.suppress(OSError, IndexError):
                self.signal_server(signal.SIGCONT)
        return super().stop(sig, seconds)


class Haproxy(Process):
    """haproxy with the file of `deploy/` before two replicas, which have the settings `BEHIND_HAPROXY`; without its
    second tries where `retries` is false.

    Args:
        balance: how it chooses one of them, `AWNET_BALANCE`.
    """

    def __init__(
        self, folder: Path, replicas: Sequence[Server], retries: bool = True, balance: str = "leastconn"
    ) -> None:
        self.port, self._private = free_port(), free_port()
        config = HAPROXY_CONFIG
        if not retries:
            text, found = re.subn(r"(?m)^    (retry-on|retries|option redispatch) .*\n", "", config.read_text("utf-8"))
            if found != 3:
                raise RuntimeError(f"{config} has other lines about retries than are known here")
            config = folder / "haproxy.cfg"
            config.write_text(text.replace("backend replicas\n", "backend replicas\n    retries 0\n"), "utf-8")
        super().__init__(
            ["haproxy", "-db", "-f", config],
            folder / "haproxy.log",
            {
                "AWNET_PUBLIC": f"127.0.0.1:{self.port}",
                "AWNET_PRIVATE": f"127.0.0.1:{self._private}",
                "AWNET_SOURCE": PROXY,
                "AWNET_BALANCE": balance,
                **{f"AWNET_REPLICA_{i + 1}": f"127.0.0.1:{replica.port}" for i, replica in enumerate(replicas)},
            },
        )

    async def up(self, *indices: int, seconds: float = 60) -> None:
        """Wait until these replicas get traffic."""

        async def all_up() -> bool:
            samples = exposition(await fetch(self._private, "/metrics"))
            name = 'haproxy_server_status{{proxy="replicas",server="replica-{}",state="UP"}}'
            return all(samples.get(name.format(index + 1)) == 1 for index in indices)

        await seconds_until(all_up, seconds, self)

    async def retried(self) -> int:
        """Tries that it made once more, to the same replica or another."""
        samples = exposition(await fetch(self._private, "/metrics"))
        return sum(
            int(samples[f'haproxy_backend_{kind}_warnings_total{{proxy="replicas"}}'])
            for kind in ("retry", "redispatch")
        )


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, user and system, to the nanosecond; 0 where Linux does not tell it."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3) of the C library
    except OSError:
        return 0.0


def rss_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def children(pid: int) -> list[int]:
    """The processes that `pid` has started and not waited for. None of a process, or of a thread, that has ended."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, task.read_text("ascii").split())
    return found


def family(pid: int) -> list[int]:
    """`pid` and every process below it."""
    found, at = [pid], 0
    while at < len(found):
        found += children(found[at])
        at += 1
    return found


def memory_mb(pid: int, kind: str) -> float:
    """Rss or Pss of a process; 0 of one that has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
