"""Looks whether the gRPC port of this process takes connections and answers on them: an HTTP/2 ping, now and then.

The library accepts on threads of its own, which nothing here sees; and a call would be counted, logged and bounded like
a client's. A port that hangs up is one that is full, or wants a certificate: it takes connections.
"""

from __future__ import annotations

import asyncio
import ssl

PROBE_SECONDS = 5.0  # between probes
ANSWER_SECONDS = 5.0  # for one
ATTEMPTS = 2  # one after the other that fail until it counts

_SETTINGS, _PING, _ACK = 4, 6, 1
_HEAD = 9  # bytes of a frame before its payload
_ASKED = b"".join(
    (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        bytes([0, 0, 0, _SETTINGS, *bytes(5)]),
        bytes([0, 0, 8, _PING, *bytes(5), *bytes(8)]),
    )
)
_ALL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 nothing is bound


class Probe:
    """Of one port.

    Args:
        host, port: where it listens; an address that stands for all is asked by the loopback one.
        secure: it speaks TLS.

    Attributes:
        failure: what is wrong, after so many attempts; None while nothing is.
    """

    def __init__(self, host: str, port: int, secure: bool) -> None:
        self._address = (_ALL.get(host, host), port)
        self._context = _any_certificate() if secure else None
        self.failure: str | None = None

    async def run(self) -> None:
        """Probe until cancelled."""
        failed = 0
        while True:
            why = await self.once()
            failed = failed + 1 if why else 0
            self.failure = why if failed >= ATTEMPTS else None
            await asyncio.sleep(PROBE_SECONDS)

    async def once(self) -> str | None:
        """What is wrong with the port, if anything."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._ping()
        except ConnectionRefusedError:
            return "nobody listens there"
        except TimeoutError:
            return f"no answer within {ANSWER_SECONDS:g} s"
        except (EOFError, OSError):  # it hung up, which TLS errors say as well
            pass
        return None

    async def _ping(self) -> None:
        reader, writer = await asyncio.open_connection(*self._address, ssl=self._context)
        try:
            writer.write(_ASKED)
            while True:
                head = await reader.readexactly(_HEAD)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == _PING and head[4] & _ACK:
                    return
        finally:
            writer.transport.abort()


def _any_certificate() -> ssl.SSLContext:
    """Whose certificate it is does not matter: nothing is told."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context
