"""HTTP/1.1 over asyncio streams, by hand, so that a caller sees every way in which an answer can fail to come."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from .waiting import until

Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Ends(Protocol):
    """A process that may end while somebody waits for it; `failure` says so with its log."""

    @property
    def running(self) -> bool: ...

    def failure(self) -> RuntimeError: ...


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


async def seconds_until(check: Callable[[], Awaitable[bool]], seconds: float, process: Ends | None = None) -> float:
    """Ask `check` until it is true; the seconds that took. Connection errors count as no."""

    async def checked() -> bool:
        with contextlib.suppress(OSError, EOFError, ValueError, TimeoutError):
            if await check():
                return True
        if process is not None and not process.running:
            raise process.failure()
        return False

    started = time.monotonic()
    await until(checked, seconds, pause_seconds=0.02)
    return time.monotonic() - started


def exposition(text: bytes) -> dict[str, float]:
    """Every sample by its full name, labels included."""
    samples = {}
    for line in text.decode().splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            samples[name] = float(value)
    return samples
