"""What a gRPC client may do to its connection: frames written by hand, as no client library would."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server.oip.grpc_front import GrpcFront
from tests.repository import ROOT
from tests.server.small import Small
from tests.waiting import until

DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
END_HEADERS, END_STREAM = 4, 1
ENHANCE_YOUR_CALM = 11
ROUTE = "/inference.GRPCInferenceService/ModelInfer"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def request_headers(path: str | bytes, metadata: Mapping[str, bytes] | None = None) -> bytes:
    """Of a gRPC call: HPACK literals without indexing."""
    path = path.encode() if isinstance(path, str) else path
    given = {":method": b"POST", ":scheme": b"http", ":path": path, ":authority": b"a"}
    given |= {"content-type": b"application/grpc", "te": b"trailers", **(metadata or {})}
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value for name, value in given.items()
    )


class Connection:
    """An HTTP/2 connection by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self.frames: list[tuple[int, int, bytes]] = []  # (kind, flags, payload)
        self.closed = False

    async def read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                self.frames.append((head[3], head[4], payload))
        except (EOFError, OSError):
            self.closed = True

    def of(self, kind: int) -> list[tuple[int, bytes]]:
        return [(flags, payload) for found, flags, payload in self.frames if found == kind]


class Served:
    def __init__(self, small: Small) -> None:
        self.small = small
        self.front = GrpcFront(small.service, "127.0.0.1", 0)
        self.port = small.run(self.front.start())

    def run(self, work: Callable[[Connection], Coroutine[Any, Any, None]]) -> None:
        async def go() -> None:
            async with asyncio.timeout(60), self._connected() as connection:
                await work(connection)

        self.small.run(go())

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port))
        connection.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b""))
        reading = asyncio.create_task(connection.read())
        try:
            yield connection
        finally:
            reading.cancel()
            connection.writer.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = Served(Small(tmp_path_factory.mktemp("repository"), body_seconds=0.3))
    yield running
    running.small.run(running.front.stop(0))
    running.small.close()


def test_a_message_that_comes_byte_by_byte_is_given_up(served: Served) -> None:
    """The time is for the whole message: each byte gains nothing."""
    counted = f'awnet_requests_total{{code="408",method="GRPC",route="{ROUTE}"}} 1.0'

    async def go(connection: Connection) -> None:
        write = connection.writer.write
        write(
            frame(HEADERS, END_HEADERS, 1, request_headers(ROUTE)) + frame(DATA, 0, 1, b"\0" + struct.pack(">I", 3000))
        )

        def ended() -> bool:
            write(frame(DATA, 0, 1, b"\x0a"))
            return any(flags & END_STREAM for flags, _ in connection.of(HEADERS))

        await until(ended)
        await until(lambda: counted in generate_latest(served.small.metrics.registry).decode())

    served.run(go)


NOT_UTF8 = b"\xff"


@pytest.mark.parametrize("path", [ROUTE.encode() + NOT_UTF8, b"/" + NOT_UTF8, b"/\xed\xa0\x80/a", b"/nothing"])
def test_a_method_whose_name_is_no_text_is_unimplemented(served: Served, path: bytes) -> None:
    """And the server serves on: the library's own loop ends with such a name, for everybody and for good."""

    async def go(connection: Connection) -> None:
        connection.writer.write(frame(HEADERS, END_HEADERS | END_STREAM, 1, request_headers(path)))
        await until(lambda: bool(connection.of(HEADERS)))
        assert any(b"grpc-status\x0212" in payload for _, payload in connection.of(HEADERS))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert (await stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=30)).live

    served.run(go)


@pytest.mark.parametrize("name", ["x-request-id", "x-api-key", "authorization", "x-forwarded-for", "other"])
def test_metadata_that_is_no_text_is_no_line_of_the_log(
    served: Served, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """It may hold a key, and a stranger sends as many as they like."""

    async def go(connection: Connection) -> None:
        given = request_headers(ROUTE, {name: b"secret" + NOT_UTF8})
        connection.writer.write(frame(HEADERS, END_HEADERS | END_STREAM, 1, given))
        await until(lambda: bool(connection.of(HEADERS)))

    served.run(go)
    assert not [line for line in caplog.messages if "secret" in line]


A_SERVER = """
import asyncio
from server.oip.grpc_front import grpc
async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(bytes.fromhex(HEX))
    assert b"te" in await asyncio.wait_for(reader.readuntil(b"metadata"), 30)  # the status says it
    await server.stop(0)
asyncio.run(main())
"""


@pytest.mark.process
def test_a_header_that_grpc_cannot_read_is_no_line_on_standard_error() -> None:
    """Its core would write one for each, past the log that drops what nobody reads."""
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"")
    sent += frame(HEADERS, END_HEADERS | END_STREAM, 1, request_headers(ROUTE, {"te": NOT_UTF8}))
    program = A_SERVER.replace("HEX", repr(sent.hex()))
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


UNSERVED = ("/inference.GRPCInferenceService/ModelStreamInfer", "/inference.GRPCInferenceService/RepositoryIndex")


@pytest.mark.parametrize("route", [*UNSERVED, "/grpc.health.v1.Health/Watch"])
def test_a_call_that_is_not_served_has_the_bounds_of_one_that_is(tmp_path: Path, route: str) -> None:
    """Counted before its message is there, and given up where none comes: silent ones cannot be opened without end."""
    few = Served(Small(tmp_path, body_seconds=1.0, grpc_max_calls=4))

    async def go(connection: Connection) -> None:
        streams = range(1, 9, 2)
        for stream in streams:
            connection.writer.write(frame(HEADERS, END_HEADERS, stream, request_headers(route)))
        await until(lambda: len([1 for flags, _ in connection.of(HEADERS) if flags & END_STREAM]) == len(streams))
        counted = generate_latest(few.small.metrics.registry).decode()
        # Three quarters are one client's.
        assert 'awnet_rejections_total{reason="too-many-calls"} 1.0' in counted
        assert 'awnet_rejections_total{reason="request-timeout"} 3.0' in counted

    few.run(go)
    few.small.run(few.front.stop(0))
    few.small.close()


def test_who_pings_all_the_time_is_hung_up_on(served: Served) -> None:
    """Each ping is work; the reason is told. Others are served beside it."""

    async def go(connection: Connection) -> None:
        def hung_up() -> bool:
            connection.writer.write(frame(PING, 0, 0, bytes(8)) * 10)
            return bool(connection.of(GOAWAY))

        await until(hung_up)
        (code,) = {int.from_bytes(payload[4:8], "big") for _, payload in connection.of(GOAWAY)}
        assert code == ENHANCE_YOUR_CALM
        await until(lambda: connection.closed)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert (await stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=30)).live

    served.run(go)


def test_a_ping_now_and_then_is_answered(served: Served) -> None:
    """The control: a connection is kept as long as its pings are few."""

    async def go(connection: Connection) -> None:
        connection.writer.write(frame(PING, 0, 0, b"are you?"))
        await until(lambda: (1, b"are you?") in connection.of(PING))
        assert not connection.closed

    served.run(go)


def test_a_message_that_no_image_needs_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    """500,000 parameters would keep the event loop busy for seconds."""
    entry = b"\x22\x0c\x0a\x06%06x\x12\x02\x08\x01"
    running = Served(Small(tmp_path, max_body_bytes=8 << 20))

    async def go() -> None:
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}", options=options) as channel:
            call = channel.unary_unary(ROUTE)(b"".join(entry % n for n in range(500_000)), timeout=60)
            assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "more fields" in str(await call.details())

    running.small.run(go())
    running.small.run(running.front.stop(0))
    running.small.close()
