"""A running server behind a URL, asked as `local.Local` is."""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from domain import __version__

from ..local import Reply

SECONDS = 60.0  # longest silence of the server


class AddressError(ValueError):
    """The URL is none that can be asked."""


class UnreachableError(ConnectionError):
    """The server gave no answer; says why."""


class Remote:
    """An asynchronous context with up to `connections` connections, each of which is used again.

    Args:
        url: http:// or https://, with whatever lies before /predict. Certificates are checked against those of the
            system, or of the file in the variable SSL_CERT_FILE.
        key: API key, for `Authorization: Bearer`.

    Raises:
        AddressError: the URL cannot be asked.
    """

    def __init__(self, url: str, key: str | None = None, connections: int = 8) -> None:
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise AddressError(f"{url}: {error}") from None
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.username:
            raise AddressError(f"{url} is no address such as http://127.0.0.1:8000")
        self.url = url
        self.in_the_open = key is not None and parts.scheme == "http" and not _loopback(host)
        self._host, self._port, self._prefix = host, port, parts.path.rstrip("/")
        self._context = ssl.create_default_context() if parts.scheme == "https" else None
        self._key = key
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="awnet-remote")
        self._mine = threading.local()

    async def __aenter__(self) -> Remote:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def predict(self, body: bytes, query: str = "", headers: Mapping[str, str] | None = None) -> Reply:
        """The answer to `POST /predict?QUERY`. Raises UnreachableError."""
        given = {"Content-Type": "application/octet-stream", "User-Agent": f"awnet/{__version__}", **(headers or {})}
        if self._key is not None:
            given["Authorization"] = f"Bearer {self._key}"
        target = f"{self._prefix}/predict" + (f"?{query}" if query else "")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, target, body, given)

    def _ask(self, target: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        connection: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        kept = connection is not None
        if connection is None:
            connection = self._mine.connection = self._connection()
        try:
            connection.request("POST", target, body, dict(headers))
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, told, answer.read())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._mine.connection = None
            if kept and isinstance(error, http.client.RemoteDisconnected | BrokenPipeError | ConnectionResetError):
                return self._ask(target, body, headers)  # it was closed while nobody used it
            raise UnreachableError(f"{self.url}: {_why(error)}") from None

    def _connection(self) -> http.client.HTTPConnection:
        if self._context is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=SECONDS, context=self._context)
        return http.client.HTTPConnection(self._host, self._port, timeout=SECONDS)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _why(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, TimeoutError | socket.timeout):
        return f"no answer within {SECONDS:g} s"
    told = error.strerror if isinstance(error, OSError) else None
    return told or str(error) or type(error).__name__
