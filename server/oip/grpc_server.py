"""grpc.aio's server, without the one call that ends it.

Its loop decodes the name of the method of each call as UTF-8, and where that fails, which takes one byte of a stranger,
the whole server shuts down for good (grpcio 1.85). Here the names of all methods are registered,
so that the library matches them by their bytes, and of any other call the name is never looked at: one handler has
them all.

It also logs a line and a trace for each value of metadata that is no UTF-8, which may hold a key: those are left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server

from ..ports.tls import Certificate, Certificates

UNREGISTERED = ""  # in place of the name of a method that is none; no path is empty
NOT_UTF8 = "Invalid encoding on"  # what grpcio logs of such a value begins so


class AnyServer(Protocol):
    """What `server` gives: grpc.aio's server, and whether it still takes calls."""

    def add_insecure_port(self, address: str) -> int: ...

    def add_secure_port(self, address: str, server_credentials: Any) -> int: ...

    async def start(self) -> None: ...

    async def stop(self, grace: float | None) -> None: ...

    @property
    def takes_calls(self) -> bool: ...


def server(
    methods: Mapping[str, grpc.RpcMethodHandler], other: grpc.RpcMethodHandler, options: Iterable[tuple[str, int]]
) -> AnyServer:
    """A server of these methods, by their paths.

    Args:
        other: handles the calls of any other method, whose name it is not told.
    """
    logging.getLogger(cygrpc.__name__).addFilter(_is_no_value)
    return _Server(methods, other, options)


def credentials(certificates: Certificates) -> Any:
    """Credentials that follow the certificate's files: gRPC asks at each handshake."""

    def configuration(certificate: Certificate) -> Any:
        pairs = [(certificate.key, certificate.chain)]
        return grpc.ssl_server_certificate_configuration(pairs, certificate.client_ca)

    used = certificates.current

    def fetch() -> Any:
        nonlocal used
        found = certificates.current
        if found is used:
            return None  # the same as before
        used = found
        return configuration(found)

    return grpc.dynamic_ssl_server_credentials(configuration(used), fetch, used.client_ca is not None)


def _is_no_value(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(NOT_UTF8)


class _Server(_server.Server):  # type: ignore[misc]
    """As grpc.aio makes one, but for what takes the calls."""

    def __init__(
        self,
        methods: Mapping[str, grpc.RpcMethodHandler],
        other: grpc.RpcMethodHandler,
        options: Iterable[tuple[str, int]],
    ) -> None:
        self._loop = cygrpc.get_working_loop()
        self._server = _Taker(self._loop, None, (), None, tuple(options), None)
        self._server.take(dict(methods), other)

    @property
    def takes_calls(self) -> bool:
        """It runs, and a task waits for the calls of each method."""
        return bool(self._server.is_running()) and self._server.taking


class _Taker(cygrpc.AioServer):  # type: ignore[misc]
    """Takes the calls of each method in a task of its own; what serves one is grpcio's."""

    def take(self, methods: dict[str, grpc.RpcMethodHandler], other: grpc.RpcMethodHandler) -> None:
        self.add_registered_method_handlers(methods)
        self._resolver = cygrpc._MethodResolver([], methods | {UNREGISTERED: other})
        self._served: set[asyncio.Task[None]] = set()  # or nobody would hold them
        self._takers: list[asyncio.Task[None]] = []

    @property
    def taking(self) -> bool:
        return bool(self._takers) and not any(taker.done() for taker in self._takers)

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Task[None]:
        """What grpcio's loop awaits: here it ends only where no more calls can be taken."""
        taker = asyncio.get_running_loop().create_task(self._take(method))
        self._takers.append(taker)
        return taker

    async def _take(self, method: bytes | None) -> None:
        """Serve the calls of a method as they come; of any that is not registered where `method` is None."""
        loop, name = asyncio.get_running_loop(), UNREGISTERED if method is None else method.decode()
        while True:
            call = await (self._request_call() if method is None else self._request_registered_call(method))
            answer = cygrpc._handle_rpc(name, self._resolver, (), call, loop, False)
            task = loop.create_task(cygrpc._schedule_rpc_coro(answer, call, loop, name))
            self._served.add(task)
            task.add_done_callback(self._served.discard)
