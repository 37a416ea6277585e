"""Findings to syslog: RFC 5424 over UDP, TCP (RFC 6587, octet counting) or TLS (RFC 5425).

Syslog knows no answer: what UDP loses, or a TCP peer had not read when it died, is gone. Who needs each event has a
webhook, or an agent at the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import orjson

from .delivery import DeliveryError
from .webhook import trusted

FACILITY = 13  # log audit
SEVERITIES = {2: 5, 3: 4, 4: 3}  # of OCSF -> of syslog: notice, warning, error
PORTS = {"udp": 514, "tcp": 514, "tls": 6514}
MAX_DATAGRAM_BYTES = 65_000

_ADDRESS = re.compile(r"(udp|tcp|tls)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


class Address(NamedTuple):
    """Where syslog is."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """SCHEME://HOST[:PORT]. Raises ValueError."""
        found = _ADDRESS.fullmatch(text)
        if found is None or not 0 < int(found[3] or 1) < 65536:
            raise ValueError("must be udp://, tcp:// or tls:// with HOST or HOST:PORT")
        return cls(found[1], found[2].strip("[]"), int(found[3] or PORTS[found[1]]))


class Syslog:
    """One receiver. `ca` as for a webhook. Raises StartupError."""

    name = "syslog"

    def __init__(self, address: Address, ca: Path | None = None) -> None:
        self._address = address
        self._context: ssl.SSLContext | None = trusted(ca) if address.scheme == "tls" else None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, lines: Sequence[bytes]) -> None:
        messages = [message(line) for line in lines]
        if self._address.scheme == "udp":
            await self._datagrams(messages)
            return
        if self._writer is None or self._reader is None or self._reader.at_eof() or self._writer.is_closing():
            await self._disconnect()
            self._reader, self._writer = await asyncio.open_connection(
                self._address.host, self._address.port, ssl=self._context
            )
        try:
            self._writer.writelines(b"%d %s" % (len(one), one) for one in messages)
            await self._writer.drain()
            await asyncio.sleep(0)  # a peer that has closed is seen before the cursor moves
            if self._reader.at_eof():
                raise DeliveryError("it has closed the connection")
        except BaseException:
            await self._disconnect()
            raise

    async def close(self) -> None:
        await self._disconnect()

    async def _disconnect(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await self._writer.wait_closed()
        self._reader = self._writer = None

    async def _datagrams(self, messages: Sequence[bytes]) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, where = found[0]
        with socket.socket(family, kind, protocol) as sender:
            sender.setblocking(False)
            await loop.sock_connect(sender, where)
            for one in messages:
                await loop.sock_sendall(sender, one[:MAX_DATAGRAM_BYTES])


def message(line: bytes) -> bytes:
    """An event of the journal as a message of RFC 5424; the event is its text, without a byte order mark."""
    event = orjson.loads(line)
    priority = 8 * FACILITY + SEVERITIES.get(event["severity_id"], 5)
    stamp = datetime.fromtimestamp(event["time"] / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    host = re.sub(r"[^!-~]", "_", socket.gethostname())[:255] or "-"
    return b"<%d>1 %s %s awnet %d OCSF - %s" % (priority, stamp.encode(), host.encode(), os.getpid(), line)
