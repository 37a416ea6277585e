"""An open loop over HTTP/1.1: requests are sent when they are due, whether or not earlier ones are answered.

One thread and `select`, whose timeout is in microseconds: a request costs this client a tenth of a millisecond of one
core, so that on shared cores it is the server that is measured. Latencies count from when a request was due
(coordinated omission).
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

CONNECTIONS = 128  # most at a time; requests wait for one, and that counts


class Answered(NamedTuple):
    """One request: seconds after the start at which it was due, and from then to its answer; infinite without a 200."""

    due: float
    seconds: float


def open_loop(port: int, request: bytes, due: Iterable[float]) -> list[Answered]:
    """Send `request` at these seconds, ascending, over connections that are kept; returns once all are answered."""
    idle: list[socket.socket] = []
    busy: dict[socket.socket, tuple[float, bytearray]] = {}
    waiting: deque[float] = deque()
    done: list[Answered] = []
    coming = iter(due)
    following = next(coming, None)
    begun = time.perf_counter()
    try:
        while following is not None or waiting or busy:
            now = time.perf_counter() - begun
            while following is not None and following <= now:
                waiting.append(following)
                following = next(coming, None)
            while waiting and (idle or len(busy) < CONNECTIONS):
                link = idle.pop() if idle else socket.create_connection(("127.0.0.1", port))
                link.sendall(request)
                busy[link] = waiting.popleft(), bytearray()
            now = time.perf_counter() - begun
            wait = 10.0 if following is None else max(0.0, following - now)
            readable, _, _ = select.select(busy, (), (), wait)
            if not readable and following is None:
                raise TimeoutError(f"{len(busy)} requests have no answer")
            for link in readable:
                since, answer = busy[link]
                data = link.recv(65536)
                answer += data
                if not data or _whole(answer):
                    del busy[link]
                    right = answer.startswith(b"HTTP/1.1 200 ")
                    done.append(Answered(since, time.perf_counter() - begun - since if right else math.inf))
                    idle.append(link) if data else link.close()
    finally:
        for link in (*idle, *busy):
            link.close()
    return done


def _whole(answer: bytearray) -> bool:
    """Whether an answer with a content-length is all there."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    length = answer[:end].lower().partition(b"content-length:")[2].partition(b"\r")[0]
    return len(answer) >= end + 4 + int(length)


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """The request that is sent."""
    told = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
