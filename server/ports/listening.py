"""Listening sockets: bound for one process, or held for several that share a port."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import StartupError

log = logging.getLogger("awnet")

BACKLOG = 2048
HOSTS = {"--admin-port": "--admin-host", "--metrics-port": "--metrics-host"}  # the others share --host
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
                bound.append(_bound(family, kind, protocol, address, alone=len(found) == 1))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                trouble = error  # a name may stand for addresses that this machine does not have
        if not bound and trouble is not None:
            raise trouble
    except OSError as error:
        for made in bound:
            made.close()
        raise _refused(host, port, option, error) from None
    return bound


def listen(host: str, port: int, option: str) -> list[socket.socket]:
    """As `bind`, and listening, non-blocking."""
    bound = bind(host, port, option)
    try:
        for made in bound:
            made.listen(BACKLOG)
            made.setblocking(False)
    except OSError as error:  # another process has bound the same address, and listened first
        raise _refused(host, port, option, error) from None
    return bound


def listens(listening: socket.socket) -> bool:
    """Whether connections can still come to the socket: it is open, and listening."""
    try:
        return bool(listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


class PortWatch:
    """Whether the ports of this process take connections; logs when one takes none any more, and when it does again.

    Attributes:
        troubled: names of those that take none, as they were when last looked at.
    """

    def __init__(self) -> None:
        self._ports: dict[str, Callable[[], str | None]] = {}
        self.troubled: frozenset[str] = frozenset()

    def add(self, name: str, trouble: Callable[[], str | None]) -> None:
        """Watch a port; `trouble` says what is wrong with it, None where nothing is."""
        self._ports[name] = trouble

    def look(self) -> None:
        """Look at each."""
        found = {name: why for name, trouble in self._ports.items() if (why := trouble()) is not None}
        for name in found.keys() - self.troubled:
            log.error("not ready: the %s port takes no connections: %s", name, found[name])
        for name in self.troubled - found.keys():
            log.warning("the %s port takes connections again", name)
        self.troubled = frozenset(found)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches whoever listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refused(host: str, port: int, option: str, error: OSError) -> StartupError:
    what = option.removeprefix("--").replace("-", " ")
    if isinstance(error, socket.gaierror) or error.errno in _ABSENT:  # the address is at fault, not the port
        another = HOSTS.get(option, "--host")
    else:
        another = option if option == "--port" else f"{option}, or 'none'"
    return StartupError(f"the {what} {host}:{port} cannot be had ({error.strerror}): name another {another}")


def _bound(family: int, kind: int, protocol: int, address: Any, alone: bool) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `::` is all addresses, as it is for gRPC; of a name's addresses each has a socket of its own.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::" or not alone))
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


def listen_all(
    ports: Mapping[str, tuple[str, int, str]], secure: bool, by_keys: bool
) -> dict[str, list[socket.socket]]:
    """As `listen`, each port by what it is for; a line in the log for each address, and a warning where any may ask.

    Args:
        ports: host, port and option of each.
        secure: they speak TLS.
        by_keys: callers need keys.
    """
    opened = {purpose: listen(*port) for purpose, port in ports.items()}
    for purpose, sockets in opened.items():
        for bound in sockets:
            log.info("%s on %s", _SAID.get(purpose, f"{purpose} calls"), url(bound, secure))
    others = sorted({host for host, _, _ in ports.values() if not is_loopback(host)})
    if others and not by_keys:
        log.warning(
            "whoever reaches %s may ask everything: there are no API keys (AWNET_API_KEYS)", " and ".join(others)
        )
    return opened


_SAID = {"public": "listening", "metrics": "metrics"}


def url(bound: Any, secure: bool = False) -> str:
    """Where a socket listens."""
    host, port = bound.getsockname()[:2]
    return f"{'https' if secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
