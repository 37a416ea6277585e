"""Processes and load: front ends, haproxy before them, and, for the fault table, callers that check every answer.

Everything listens on free ports of 127.0.0.1. A caller counts as failed whatever is not a whole answer of status 200
with the values that the same picture got before the fault: a wrong answer is worse than none and is counted apart.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.report import ROOT

HAPROXY_CONFIG = ROOT / "deploy/haproxy.cfg"
Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]
TOLERANCE = 1e-3  # of a score; the model's own golden tolerance is of this order


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def picture(side: int, seed: int) -> bytes:
    """A PNG of noise: 3 kB at 32 pixels, 20 kB at 96."""
    pixels = np.clip(np.random.default_rng(seed).normal(128, 30, (side, side, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def drawing() -> bytes:
    """A PNG that is quick to send and slow to decode: 12 kB, 1.9 million pixels."""
    across, down = np.meshgrid(np.arange(1600), np.arange(1200))
    pixels = np.stack([across // 8 % 256, down // 8 % 256, (across + down) // 16 % 256], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# Small ones fit haproxy's buffer and can be sent to the other front end again; the large ones cannot.
PICTURES = (picture(32, 0), picture(32, 1), picture(96, 2))


class Process:
    """A program with its log in a file. Leaving the `with` block ends it."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: dict[str, str] | None = None) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("AWNET_")}
        self.command, self.log, self._environment = command, log, clean | (environment or {})
        self.popen: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [*map(str, self.command)], cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def send(self, sig: signal.Signals) -> None:
        assert self.popen is not None
        self.popen.send_signal(sig)

    async def gone(self, seconds: float) -> int:
        """Its exit status, or TimeoutError."""
        assert self.popen is not None
        deadline = time.monotonic() + seconds
        while (status := self.popen.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.command[0]} did not end within {seconds:g} s")
            await asyncio.sleep(0.01)
        return status

    def cpu_seconds(self) -> float:
        """CPU time that it has used, user and system."""
        assert self.popen is not None
        return cpu_seconds(self.popen.pid)

    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def end(self) -> None:
        if self.running:
            assert self.popen is not None
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
            try:
                self.popen.wait(15)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class Front(Process):
    """`python -m server` on a port of its own; `settings` as in `server.settings`."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.port = free_port()
        given = {"port": self.port, "admin_port": "none", "threads": 1, **settings}
        environment = {f"AWNET_{name.upper()}": str(value) for name, value in given.items()}
        super().__init__([sys.executable, "-m", "server"], folder / f"front-{self.port}.log", environment)

    async def ready(self, seconds: float = 60) -> None:
        """Wait until readiness is reported."""
        await until(lambda: get(self.port, "/v2/health/ready"), seconds, self)

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its full name, labels included."""
        return exposition(await fetch(self.port, "/metrics"))


class Haproxy(Process):
    """haproxy with the file of `deploy/` before two front ends; without its second tries where `retries` is false."""

    def __init__(self, folder: Path, fronts: Sequence[Front], retries: bool = True) -> None:
        self.port, self._private = free_port(), free_port()
        config = HAPROXY_CONFIG
        if not retries:
            text, found = re.subn(r"(?m)^    (retry-on|retries|option redispatch) .*\n", "", config.read_text("utf-8"))
            if found != 3:
                raise RuntimeError(f"{config} has other lines about retries than are known here")
            config = folder / "haproxy.cfg"
            config.write_text(text.replace("backend fronts\n", "backend fronts\n    retries 0\n"), "utf-8")
        super().__init__(
            ["haproxy", "-db", "-f", config],
            folder / "haproxy.log",
            {
                "AWNET_PUBLIC": f"127.0.0.1:{self.port}",
                "AWNET_PRIVATE": f"127.0.0.1:{self._private}",
                **{f"AWNET_FRONT_{i + 1}": f"127.0.0.1:{front.port}" for i, front in enumerate(fronts)},
            },
        )

    async def up(self, *indices: int, seconds: float = 60) -> None:
        """Wait until these front ends get traffic."""

        async def all_up() -> bool:
            samples = exposition(await fetch(self._private, "/metrics"))
            name = 'haproxy_server_status{{proxy="fronts",server="front-{}",state="UP"}}'
            return all(samples.get(name.format(index + 1)) == 1 for index in indices)

        await until(all_up, seconds, self)


def served(port: int, *more: str) -> list[str]:
    """The command of a server on `port`, without an admin port, that does not wait for balancers when it ends."""
    return [sys.executable, "-m", "server", "--port", str(port), "--drain-seconds", "0", "--admin-port", "none", *more]


@contextmanager
def running(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended on the way out."""
    process = subprocess.Popen(arguments, cwd=ROOT)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_up(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(3000):
        if process.poll() is not None:
            raise SystemExit(f"a contestant ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.01)
    raise SystemExit("a contestant did not become ready within 30 s")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, user and system; 0 where /proc does not tell it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0


def rss_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def scraped(port: int) -> dict[str, float]:
    """/metrics at `port`, as `exposition` reads it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return exposition(answer.read())


def exposition(text: bytes) -> dict[str, float]:
    """Every sample by its full name, labels included."""
    samples = {}
    for line in text.decode().splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            samples[name] = float(value)
    return samples


async def until(check: Any, seconds: float, process: Process | None = None) -> float:
    """Ask `check` until it is true; the seconds that took. Connection errors count as no."""
    started = time.monotonic()
    while True:
        try:
            if await check():
                return time.monotonic() - started
        except (OSError, EOFError, ValueError, TimeoutError):
            pass
        if process is not None and not process.running:
            raise RuntimeError(f"{process.command[0]} ended:\n{process.text()[-2000:]}")
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"not so within {seconds:g} s")
        await asyncio.sleep(0.02)


async def get(port: int, path: str) -> bool:
    """Whether the answer's status is 200."""
    return (await exchange(port, _GET % path.encode()))[0] == 200


async def fetch(port: int, path: str) -> bytes:
    """The body, whatever the status."""
    return (await exchange(port, _GET % path.encode()))[1]


_GET = b"GET %s HTTP/1.1\r\nHost: rig\r\nConnection: close\r\n\r\n"


async def exchange(port: int, request: bytes, seconds: float = 5) -> tuple[int, bytes]:
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            status, body, _ = await read_answer(reader)
            return status, body
        finally:
            writer.close()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status, body, and whether the connection closes. Raises EOFError where the answer is not whole."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    closes = b"connection: close" in head
    if (at := head.find(b"content-length:")) >= 0:
        return status, await reader.readexactly(int(head[at + 15 : head.index(b"\r", at)])), closes
    if b"transfer-encoding: chunked" in head:
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return status, body, closes
    return status, await reader.read(), True


def post(body: bytes, keep: bool) -> bytes:
    """A raw upload of `body`."""
    head = f"POST /predict HTTP/1.1\r\nHost: rig\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n"
    return (head + ("" if keep else "Connection: close\r\n") + "\r\n").encode() + body


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: seconds on `time.monotonic`, and 'ok', 'wrong', a status, or an error's name."""

    begun: float
    ended: float
    outcome: str
    version: str = ""


@dataclass
class Load:
    """Steady traffic to one port: callers that keep their connection and callers that open one for each request.

    Attributes:
        samples: every request that has ended.
        flying: requests that have begun and not ended.
    """

    port: int
    keeping: int = 4
    opening: int = 4
    pause: float = 0.02
    pictures: Sequence[bytes] = PICTURES
    seconds: float = 20.0
    samples: list[Sample] = field(default_factory=list)
    flying: int = 0
    expected: dict[int, tuple[str, float]] = field(default_factory=dict)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _ending: bool = False

    async def learn(self) -> None:
        """Ask each picture once, before any fault: these are the right answers."""
        for which, data in enumerate(self.pictures):
            status, body = await exchange(self.port, post(data, keep=False), self.seconds)
            if status != 200:
                raise RuntimeError(f"status {status} before any fault: {body[:300]!r}")
            self.expected[which] = _read(body)[:2]

    def begin(self) -> None:
        self._tasks = [
            asyncio.create_task(self._call(number, keep=number < self.keeping))
            for number in range(self.keeping + self.opening)
        ]

    async def end(self) -> None:
        """Let every caller finish its request."""
        self._ending = True
        await asyncio.gather(*self._tasks)

    def counts(self, since: float = 0.0) -> Counter[str]:
        return Counter(sample.outcome for sample in self.samples if sample.begun >= since)

    def failed(self, since: float = 0.0) -> int:
        return sum(count for outcome, count in self.counts(since).items() if outcome != "ok")

    async def _call(self, number: int, keep: bool) -> None:
        link: Link | None = None
        turn = number
        await asyncio.sleep(self.pause * number / (self.keeping + self.opening))
        while not self._ending:
            link = await self.once(turn % len(self.pictures), keep, link)
            turn += 1
            await asyncio.sleep(self.pause)
        if link is not None:
            link[1].close()

    async def once(self, which: int, keep: bool = False, link: Link | None = None) -> Link | None:
        """One request, over `link` if there is one; the connection, if it may be used again."""
        begun = time.monotonic()
        outcome, version, closes = "ok", "", True
        self.flying += 1
        try:
            async with asyncio.timeout(self.seconds):
                if link is None:
                    link = await asyncio.open_connection("127.0.0.1", self.port)
                link[1].write(post(self.pictures[which], keep))
                status, body, closes = await read_answer(link[0])
            outcome, version = self._judge(which, status, body)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            outcome = type(error).__name__
        finally:
            self.flying -= 1
        self.samples.append(Sample(begun, time.monotonic(), outcome, version))
        if link is not None and (closes or not keep):
            link[1].close()
            return None
        return link

    def _judge(self, which: int, status: int, body: bytes) -> tuple[str, str]:
        if status != 200:
            return str(status), ""
        label, score, version = _read(body)
        right = self.expected.get(which, (label, score))
        return ("ok" if label == right[0] and abs(score - right[1]) <= TOLERANCE else "wrong"), version


def _read(body: bytes) -> tuple[str, float, str]:
    document = json.loads(body)
    result = document["results"][0]
    return result["predictions"][0]["label"], float(result["adversarial"]["score"]), str(document["model"]["version"])


@asynccontextmanager
async def loaded(port: int, **options: Any) -> AsyncIterator[Load]:
    """A `Load` that has learnt the right answers and runs for the length of the block."""
    load = Load(port, **options)
    await load.learn()
    load.begin()
    try:
        yield load
    finally:
        await load.end()


def quantile(values: Sequence[float], share: float) -> float:
    """The sample below which `share` of all lie; nan for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
