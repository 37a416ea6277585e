"""A light HTTP/1.1 client for measurements on one machine: what shares cores with a server should take little of them.

One thread and `select`, whose timeouts count microseconds; those of `epoll` count milliseconds, which is as long as an
answer takes.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import TracebackType
from typing import Self

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")
_TIMING = re.compile(rb"(?i)\r\nserver-timing: *([^\r]+)\r\n")
_CLOSES = re.compile(rb"(?i)\r\nconnection: *close\r\n")
_STAGE = re.compile(rb"(\w+);dur=([\d.]+)")
CONNECTIONS = 128  # to each server at most; requests wait for one, and that counts
PATIENCE = 30.0  # seconds in which some answer comes


@dataclass(slots=True)
class Sample:
    """One request: on `time.perf_counter`, seconds; status 0 where the connection ended without an answer."""

    due: float
    target: int = 0
    ended: float = 0.0
    status: int = 0
    head: bytes = field(default=b"", repr=False)

    @property
    def seconds(self) -> float:
        """From the moment at which it was due."""
        return self.ended - self.due

    def stages(self) -> dict[str, float]:
        """Seconds of each stage, as the server says."""
        timing = _TIMING.search(self.head)
        return {name.decode(): float(ms) / 1000 for name, ms in _STAGE.findall(timing[1] if timing else b"")}


def post(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """The request that is sent."""
    fields = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Asker:
    """Sends one request again and again to servers, over connections that are kept.

    Args:
        addresses: (host, port) of each.
        request: as `post` makes it.
        connections: to each server at most.
    """

    def __init__(self, addresses: Sequence[tuple[str, int]], request: bytes, connections: int = CONNECTIONS) -> None:
        self._addresses = addresses
        self._request = request
        self._connections = connections
        # Each is used in its turn, so that a server closes none because nothing came.
        self._idle: list[deque[socket.socket]] = [deque() for _ in addresses]
        self._busy: dict[socket.socket, tuple[Sample, bytearray]] = {}
        self._waiting: list[deque[Sample]] = [deque() for _ in addresses]
        self._open = [0] * len(addresses)
        self._under_way = [0] * len(addresses)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for link in (*self._busy, *chain.from_iterable(self._idle)):
            link.close()

    def closed(self, clients: int, seconds: float) -> list[Sample]:
        """So many clients that ask the first server again once they are answered. Raises OSError."""
        samples = []
        until = time.perf_counter() + seconds
        coming = clients
        while coming or self._busy:
            for _ in range(coming):
                samples.append(Sample(time.perf_counter()))
                self._send(samples[-1])
            ended = self._receive(PATIENCE)
            coming = sum(sample.ended < until and sample.status > 0 for sample in ended)
        return samples

    def offered(self, arrivals: Iterable[float]) -> list[Sample]:
        """Requests that come whether or not earlier ones are answered, each to the server with the fewest under way.

        Args:
            arrivals: seconds after the start, ascending.

        Raises:
            OSError: nobody is there, or no answer comes.
        """
        samples = []
        begun = time.perf_counter()
        for due in arrivals:
            while (early := begun + due - time.perf_counter()) > 0:
                self._receive(early)
            samples.append(Sample(begun + due, self._under_way.index(min(self._under_way))))
            self._send(samples[-1])
        while self._busy:
            self._receive(PATIENCE)
        return samples

    def _send(self, sample: Sample) -> None:
        """Now, or once a connection is free."""
        self._under_way[sample.target] += 1
        self._waiting[sample.target].append(sample)
        self._start(sample.target)

    def _start(self, target: int) -> None:
        waiting, idle = self._waiting[target], self._idle[target]
        while waiting and (idle or self._open[target] < self._connections):
            if idle:
                link = idle.popleft()
            else:
                link = socket.create_connection(self._addresses[target])
                self._open[target] += 1
            self._busy[link] = waiting.popleft(), bytearray()
            link.sendall(self._request)

    def _receive(self, seconds: float) -> list[Sample]:
        """Requests that ended, after so long a wait for the first of them. Raises TimeoutError after PATIENCE."""
        readable, _, _ = select.select(self._busy, (), (), min(seconds, PATIENCE))
        if not readable and seconds >= PATIENCE and self._busy:
            raise TimeoutError(f"{len(self._busy)} requests have no answer")
        ended = []
        for link in readable:
            sample, answer = self._busy[link]
            try:
                data = link.recv(65536)
            except ConnectionError:
                data = b""
            answer += data
            end = answer.find(b"\r\n\r\n")
            length = _LENGTH.search(answer, 0, end + 2) if end >= 0 else None
            if data and (end < 0 or len(answer) < end + 4 + (int(length[1]) if length else 0)):
                continue
            sample.ended = time.perf_counter()
            del self._busy[link]
            if data:
                sample.status, sample.head = int(answer[9:12]), bytes(answer[: end + 2])
            if data and not _CLOSES.search(sample.head):
                self._idle[sample.target].append(link)
            else:
                link.close()
                self._open[sample.target] -= 1
            self._under_way[sample.target] -= 1
            self._start(sample.target)
            ended.append(sample)
        return ended
