"""No model: reads requests and answers each with as many bytes as it is told. `python no_model.py PORT BYTES`"""

from __future__ import annotations

import asyncio
import sys

import uvloop


class Protocol(asyncio.Protocol):
    """One request at a time a connection, with a content-length or without a body."""

    answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._data, self._wanted = transport, bytearray(), 0

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._wanted and (end := self._data.find(b"\r\n\r\n")) >= 0:
            length = self._data[:end].lower().partition(b"content-length:")[2].partition(b"\r")[0]
            self._wanted = end + 4 + int(length or 0)
        if self._wanted and len(self._data) >= self._wanted:
            self._data.clear()
            self._wanted = 0
            self._transport.write(self.answer)  # type: ignore[attr-defined]


async def main(port: int, size: int) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\r\n"
    Protocol.answer = head.encode() + b"x" * size
    server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
