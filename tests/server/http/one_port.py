"""One port of the server without a process: connections before an application that tells who asks."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop
from uvicorn.server import ServerState

from server.access.addresses import TrustedProxies
from server.errors import AWNetError, problem, status_of
from server.http.acceptor import Acceptor
from server.http.admission import Admission, ConnectionLimits
from server.http.arrival import Arrivals
from server.http.connection import Connection
from server.http.pace import Pace
from server.ports.listening import listen
from server.ports.tls import Certificates
from server.settings.settings import Settings

LIMITS = replace(ConnectionLimits.of(Settings()), header_seconds=1.0)


async def tell(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body and says who asked; /large refuses a body without reading it."""
    large = scope["path"] == "/large"
    more = not large
    while more:
        more = (await receive()).get("more_body", False)
    body = json.dumps({"client": scope["client"], "scheme": scope["scheme"]}).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 413 if large else 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def turn_away(error: AWNetError, client: str) -> tuple[int, Iterable[tuple[bytes, bytes]], bytes]:
    return status_of(error), [], json.dumps(problem(error, "id")).encode()


class OnePort:
    """A port that answers until `close`.

    Args:
        proxies: trusted; they send a PROXY header where `proxy_protocol` says so.
        app: answers the requests.
        limits: in place of those in `LIMITS`.
    """

    def __init__(
        self,
        *,
        proxies: TrustedProxies | None = None,
        proxy_protocol: bool = False,
        certificates: Certificates | None = None,
        pace: Pace | None = None,
        app: Any = tell,
        **limits: Any,
    ) -> None:
        self.state = ServerState()
        self.admission = Admission(replace(LIMITS, **limits), proxies)
        arrivals = Arrivals(
            lambda arrival: Connection(app, turn_away, self.admission, self.state, arrival),
            self.admission,
            proxies if proxy_protocol else None,
            certificates,
        )
        (self._listening,) = listen("127.0.0.1", 0, "--port")
        self.port = self._listening.getsockname()[1]
        self._acceptor = Acceptor([self._listening], lambda: len(self.state.connections), arrivals, pace=pace)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(self._acceptor.begin)
        self._loop.run_forever()

    def held(self) -> int:
        """Connections that are counted."""
        return len(self.admission)

    def connected(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection from this address of the loopback."""
        return socket.create_connection(("127.0.0.1", self.port), 30, (source, 0))

    def close(self) -> None:
        """End it, connections included."""

        async def end() -> None:
            await self._acceptor.end()
            for connection in list(self.state.connections):
                connection.shutdown()
            self._loop.stop()

        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(end()))
        self._thread.join(30)
        self._loop.close()


def asked(connection: socket.socket, path: str = "/") -> tuple[int, Any]:
    """The answer to a GET that ends the connection."""
    connection.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path.encode())
    return answered(connection)


def answered(connection: socket.socket) -> tuple[int, Any]:
    """Status and document of what comes until the end; 0 where nothing does."""
    answer = b""
    try:
        while data := connection.recv(65536):
            answer += data
    except ConnectionResetError:
        pass
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]), json.loads(body)) if head else (0, None)


def certificate(
    folder: Path, name: str = "server", *, days: float = 90, password: bytes | None = None
) -> tuple[Path, Path]:
    """A new self-signed certificate for 127.0.0.1 and localhost and its key, as PEM files."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1000))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    chain_path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
    chain_path.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return chain_path, key_path
