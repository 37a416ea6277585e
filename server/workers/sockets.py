"""Listening sockets, and the load table by which workers that share them keep their connections even."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
from typing import Any

from ..errors import StartupError

BACKLOG = 2048
PATIENCE_SECONDS = 0.004  # how long a new connection is left to a worker that has fewer; a busy one is soon back
_ENTRY = struct.Struct("=I")
_NOBODY = 0xFFFFFFFF
_ABSENT = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def bind(host: str, port: int, option: str) -> list[socket.socket]:
    """Sockets that are ours, not listening yet, one for each address of the host; port 0 takes a free one.

    Args:
        option: what to change where the address cannot be had.

    Raises:
        StartupError: an address is taken or is not ours.
    """
    bound: list[socket.socket] = []
    trouble: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                bound.append(_bound(family, kind, protocol, address))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                trouble = error  # a name may stand for addresses that this machine does not have
        if not bound and trouble is not None:
            raise trouble
    except OSError as error:
        for made in bound:
            made.close()
        hint = ", or 'none'" if option != "--port" else ""
        what = option.removeprefix("--").replace("-", " ")
        raise StartupError(
            f"the {what} {host}:{port} cannot be had ({error.strerror}): name another {option}{hint}"
        ) from None
    return bound


def _bound(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def reserve_shared(host: str, port: int) -> socket.socket:
    """A socket that holds a port, so that each worker may listen on it itself, with SO_REUSEPORT. Raises StartupError.

    It does not listen, so the kernel sends it no client. The port is asked for alone first: a stranger must not be
    shared with.
    """
    (alone, *others) = bind(host, port, "--grpc-port")
    family, kind, protocol, address = alone.family, alone.type, alone.proto, alone.getsockname()
    for made in (alone, *others):
        made.close()
    held = socket.socket(family, kind, protocol)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(address)
    return held


def url(bound: Any) -> str:
    """Where a socket listens."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class LoadTable:
    """How many connections each worker has, in memory that all workers share.

    Left to the kernel, the first worker to wake would accept all clients that connect together, and keep them. The
    numbers are a hint: one that is out of date costs a connection a few milliseconds, never more.

    Args:
        descriptor: of the memory, see `shared_memory`.
        number: this worker, from 0.
    """

    def __init__(self, descriptor: int, workers: int, number: int) -> None:
        self._memory = mmap.mmap(descriptor, workers * _ENTRY.size)
        self._workers = workers
        self._number = number

    def post(self, connections: int) -> None:
        """Write this worker's number of connections."""
        _ENTRY.pack_into(self._memory, self._number * _ENTRY.size, connections)

    def clear(self, number: int) -> None:
        """That worker accepts none."""
        _ENTRY.pack_into(self._memory, number * _ENTRY.size, _NOBODY)

    def patience(self, connections: int) -> float:
        """How long a worker with so many leaves a new connection to others, seconds; 0 where no other has fewer."""
        numbers = (value for (value,) in _ENTRY.iter_unpack(self._memory[:]))
        return PATIENCE_SECONDS if any(number < connections for number in numbers) else 0.0


def shared_memory(workers: int) -> int:
    """The descriptor of a new load table in which no worker accepts connections."""
    descriptor = os.memfd_create("awnet-workers")
    os.write(descriptor, _ENTRY.pack(_NOBODY) * workers)
    return descriptor
