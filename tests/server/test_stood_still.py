"""A server that was stopped for a while (SIGSTOP, a frozen cgroup, a debugger) blames none of its clients for that."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness.exchange import exchange, post, read_answer
from tests.server.tiny import Running, encoded, noise, plain, publish

pytestmark = [pytest.mark.process, pytest.mark.slow]

STOPPED_SECONDS, RATE = 6.0, 20
# Every one of these would be over when the server goes on.
SETTINGS = {
    "timeout_seconds": 4,
    "header_seconds": 4,
    "body_seconds": 4,
    "keep_alive_seconds": 4,
    "stall_seconds": 4,
    "connections_per_second_per_client": RATE,
    "poll_seconds": 0.2,
    "repository_seconds": 4,
}
CLIENTS = 4  # in each state
SMALL = post(encoded(noise(40, 40)), keep=True)
LARGE = post(encoded(noise(200, 200)), keep=True)
APART = post(encoded(plain(0.4, (900, 900))), keep=True)  # decoded in a process of its own

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with Running(publish(tmp_path / "models"), **SETTINGS) as running:
        running.wait_ready()
        yield running


async def asked(stream: Stream, rest: bytes) -> int:
    """Sends the rest of a request. Returns the status of its answer."""
    stream[1].write(rest)
    async with asyncio.timeout(60):
        return (await read_answer(stream[0]))[0]


def test_whoever_waits_for_a_server_that_was_stopped_is_answered(server: Running) -> None:
    """Requests under way, halves of heads and bodies, idle connections, and more new ones than a second may have."""

    async def run() -> list[int | tuple[int, bytes]]:
        async def connected() -> list[Stream]:
            return [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(CLIENTS)]

        idle, heads, bodies, busy, apart = [await connected() for _ in range(5)]
        assert {await asked(stream, SMALL) for stream in (*idle, *busy, *apart)} == {200}
        for _, writer in heads:
            writer.write(SMALL[:30])
        for _, writer in bodies:
            writer.write(LARGE[:-1000])
        await asyncio.sleep(0.3)
        waiting = [asyncio.create_task(asked(stream, LARGE)) for stream in busy]
        waiting += [asyncio.create_task(asked(stream, APART)) for stream in apart]
        await asyncio.sleep(0.01)
        server.send(signal.SIGSTOP)
        try:
            alone = SMALL.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            new = [asyncio.create_task(exchange(server.port, alone, 60)) for _ in range(int(RATE * STOPPED_SECONDS))]
            await asyncio.sleep(STOPPED_SECONDS)
        finally:
            server.send(signal.SIGCONT)
        ends = ((idle, SMALL), (heads, SMALL[30:]), (bodies, LARGE[-1000:]))
        resumed = [asked(stream, rest) for streams, rest in ends for stream in streams]
        return await asyncio.gather(*waiting, *resumed, *new)

    answers = asyncio.run(run())
    assert {answer[0] if isinstance(answer, tuple) else answer for answer in answers} == {200}
    assert server.ready()
    assert "the process stood still for " in server.text()
