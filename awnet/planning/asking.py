"""A light HTTP/1.1 client for measurements on one machine: it takes a tenth of a millisecond of CPU a request.

Its event loop waits with `select`, whose timeouts count microseconds; those of `epoll` count milliseconds, which is as
long as an answer takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import selectors
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")
_TIMING = re.compile(rb"(?i)\r\nserver-timing: *([^\r]+)\r\n")
_STAGE = re.compile(rb"(\w+);dur=([\d.]+)")
CONNECTIONS = 64  # to each server at most


@dataclass(slots=True)
class Sample:
    """One request: on `time.perf_counter`, seconds; status 0 where the connection ended without an answer."""

    due: float
    target: int = 0
    sent: float = 0.0
    ended: float = 0.0
    status: int = 0
    head: bytes = field(default=b"", repr=False)

    @property
    def seconds(self) -> float:
        """From the moment at which it was due."""
        return self.ended - self.due

    def stages(self) -> dict[str, float]:
        """Seconds of each stage, as the server says."""
        told = _TIMING.search(self.head)
        return {name.decode(): float(ms) / 1000 for name, ms in _STAGE.findall(told[1] if told else b"")}


class _Connection(asyncio.Protocol):
    """Keeps one request under way."""

    def __init__(
        self, target: int, done: Callable[[_Connection, Sample], None], lost: Callable[[_Connection], None]
    ) -> None:
        self.target = target
        self._done = done
        self._lost = lost
        self._received = bytearray()
        self._end = -1
        self.sample: Sample | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, request: bytes, sample: Sample) -> None:
        self.sample = sample
        sample.sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._end < 0:
            at = self._received.find(b"\r\n\r\n")
            if at < 0:
                return
            length = _LENGTH.search(self._received, 0, at + 2)
            self._end = at + 4 + (int(length[1]) if length else 0)
        if len(self._received) >= self._end and self.sample:
            self._over(int(self._received[9:12]), bytes(self._received.partition(b"\r\n\r\n")[0]) + b"\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(self)
        if self.sample:
            self._over(0, b"")

    def _over(self, status: int, head: bytes) -> None:
        sample, self.sample = self.sample, None
        assert sample is not None
        sample.ended, sample.status, sample.head = time.perf_counter(), status, head
        self._received.clear()
        self._end = -1
        self._done(self, sample)


class Asker:
    """Asks servers about one image.

    Args:
        addresses: (host, port) of each.
        image: the body of each request.
        headers: more lines of the head, each with its end.
    """

    def __init__(self, addresses: Sequence[tuple[str, int]], image: bytes, kind: str, headers: str = "") -> None:
        self._addresses = addresses
        head = f"POST /predict HTTP/1.1\r\nHost: {addresses[0][0]}\r\nContent-Type: {kind}\r\n{headers}"
        self._request = f"{head}Content-Length: {len(image)}\r\n\r\n".encode() + image
        # Each is used in its turn, so that a server closes none because nothing came.
        self._idle: list[deque[_Connection]] = [deque() for _ in addresses]
        self._open: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: list[deque[Sample]] = [deque() for _ in addresses]
        self._ended: Callable[[Sample], None] = lambda sample: None
        self.in_flight = [0] * len(addresses)

    async def connect(self, connections: int = CONNECTIONS) -> None:
        """Opens so many to each server. Raises OSError."""
        for target in range(len(self._addresses)):
            for _ in range(connections):
                await self._connect(target)

    async def _connect(self, target: int) -> None:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(target, self._over, self._lost), *self._addresses[target]
        )
        self._open.add(connection)
        self._free(connection)

    def close(self) -> None:
        for connection in list(self._open):
            connection.sample = None
            connection.transport.close()

    async def closed(self, clients: int, seconds: float) -> list[Sample]:
        """So many clients that ask the first server again once they are answered."""
        samples: list[Sample] = []
        done = asyncio.Event()
        until = time.perf_counter() + seconds
        left = clients

        def again(sample: Sample | None = None) -> None:
            nonlocal left
            if sample and (sample.ended >= until or not sample.status):
                left -= 1
                if not left:
                    done.set()
                return
            samples.append(Sample(time.perf_counter()))
            self._send(samples[-1])

        self._ended = again
        for _ in range(clients):
            again()
        await done.wait()
        return samples

    async def offered(self, arrivals: Iterable[float], choose: Callable[[Sequence[int]], int]) -> list[Sample]:
        """Requests that come whether or not earlier ones are answered.

        Args:
            arrivals: seconds after the start, ascending.
            choose: requests under way at each server -> which of them gets this one.
        """
        samples: list[Sample] = []
        done = asyncio.Event()
        left = 1

        def ended(_: Sample | None = None) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        self._ended = ended
        begun = time.perf_counter()
        for due in arrivals:
            if (early := begun + due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            sample = Sample(begun + due, choose(self.in_flight))
            samples.append(sample)
            left += 1
            self._send(sample)
        ended()
        await done.wait()
        return samples

    def _send(self, sample: Sample) -> None:
        target = sample.target
        self.in_flight[target] += 1
        self._waiting[target].append(sample)
        if self._idle[target]:
            self._free(self._idle[target].popleft())
        elif len(self._open) + len(self._opening) < CONNECTIONS * len(self._addresses):
            opening = asyncio.ensure_future(self._connect(target))
            self._opening.add(opening)
            opening.add_done_callback(partial(self._opened, target))

    def _opened(self, target: int, opening: asyncio.Task[None]) -> None:
        self._opening.discard(opening)
        if not opening.cancelled() and opening.exception() and self._waiting[target]:  # nobody is there any more
            sample = self._waiting[target].popleft()
            sample.ended = time.perf_counter()
            self.in_flight[target] -= 1
            self._ended(sample)

    def _free(self, connection: _Connection) -> None:
        waiting = self._waiting[connection.target]
        if waiting:
            connection.send(self._request, waiting.popleft())
        else:
            self._idle[connection.target].append(connection)

    def _over(self, connection: _Connection, sample: Sample) -> None:
        self.in_flight[sample.target] -= 1
        if connection in self._open:
            self._free(connection)
        self._ended(sample)

    def _lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle[connection.target].remove(connection)


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, on a loop whose timers count microseconds."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(main)
