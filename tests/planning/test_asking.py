"""The client of measurements: each request ends, whatever the server does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import repeat

from awnet.planning.asking import CONNECTIONS, Asker, Sample, run
from benchmarks.harness.processes import free_port

ANSWER = b"HTTP/1.1 200 OK\r\nserver-timing: decode;dur=0.5, inference;dur=1.5\r\nContent-Length: 2\r\n\r\n{}"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def received(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))


async def patient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for _ in repeat(None):
        assert (await received(reader)).endswith(b"image")
        await asyncio.sleep(0.01)
        writer.write(ANSWER[:40])
        await asyncio.sleep(0)
        writer.write(ANSWER[40:])


async def leaving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers once, and closes the next time."""
    await received(reader)
    writer.write(ANSWER)
    await received(reader)
    writer.close()


def asked(serve: Serve, ask: Callable[[Asker], Awaitable[list[Sample]]], connections: int = 4) -> list[Sample]:
    async def both() -> list[Sample]:
        port = free_port()

        async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(quietly, "127.0.0.1", port)
        asker = Asker([("127.0.0.1", port)], b"image", "image/png")
        try:
            await asker.connect(connections)
            samples = await asyncio.wait_for(ask(asker), 20)
            assert asker.in_flight == [0]
            return samples
        finally:
            asker.close()
            server.close()

    return run(both())


def test_an_open_loop_sends_whether_or_not_it_is_answered() -> None:
    """Twenty at once over four connections: latency counts from when each was due; stages are the server's."""
    samples = asked(patient, lambda asker: asker.offered([0.0] * 20, lambda under_way: 0))
    assert [sample.status for sample in samples] == [200] * 20
    assert min(s.seconds for s in samples) > 0.01
    assert samples[0].stages() == {"decode": 0.0005, "inference": 0.0015}


def test_a_closed_loop_asks_again_once_it_is_answered() -> None:
    samples = asked(patient, lambda asker: asker.closed(3, 0.1))
    assert {sample.status for sample in samples} == {200} and 6 <= len(samples) <= 33


def test_a_connection_that_is_closed_ends_its_request() -> None:
    """And another one is opened for the next."""
    samples = asked(leaving, lambda asker: asker.offered([at / 100 for at in range(12)], lambda under_way: 0))
    statuses = [sample.status for sample in samples]
    assert len(statuses) == 12 and {*statuses} == {0, 200}


def test_no_more_connections_are_opened_than_may_be() -> None:
    most = 0

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most
        most += 1
        await patient(reader, writer)

    asked(counting, lambda asker: asker.offered([0.0] * 200, lambda under_way: 0))
    assert most == CONNECTIONS


def test_a_server_that_has_gone_ends_what_waits() -> None:
    async def ask() -> list[Sample]:
        asker = Asker([("127.0.0.1", free_port())], b"image", "image/png")
        return await asyncio.wait_for(asker.offered([0.0, 0.01], lambda under_way: 0), 20)

    assert [sample.status for sample in run(ask())] == [0, 0]
