"""Which addresses are asked: those that the operator named, and of those that an answer named what is safe.

A server that redirects, or sends a client to another one for a token, names an address of its choice. It must not make
us ask what only this machine or this network can reach, nor send anything unencrypted.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import NoReturn

import httpx

from ..errors import SourceError
from ..ports.listening import is_loopback

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Origin = tuple[str, str, int | None]

# What stands for the address of IPv4 in its last 32 bits: NAT64 (RFC 6052), IPv4-compatible, IPv4-translated.
_AROUND_IPV4 = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96", "::ffff:0:0:0/96")))
# That `is_global` takes for public: NAT64 of a network's own (RFC 8215), site-local ones (RFC 3879).
_NOT_PUBLIC = tuple(map(ipaddress.IPv6Network, ("64:ff9b:1::/48", "fec0::/10")))


def origin(url: httpx.URL) -> Origin:
    """Scheme, host and port: what has the same may be told the same secrets."""
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def said(url: httpx.URL) -> str:
    """An address as it may be logged: a query can be what opens it."""
    port = "" if url.port is None else f":{url.port}"
    return f"{url.scheme}://{url.host}{port}{url.path[:200]}"


class Reach:
    """Where one is led from an address of the operator.

    Args:
        named: that address.
        met: what was connected to, by origin: of all that is asked together. What a name stands for is looked up only
            where nothing was, because whoever answers for it may say another thing each time.
    """

    def __init__(self, named: httpx.URL, met: dict[Origin, list[Address]] | None = None) -> None:
        self._named = named
        self._met = {} if met is None else met

    async def check(self, url: httpx.URL) -> None:
        """Raises SourceError where `url` is not to be asked."""
        if origin(url) == origin(self._named):
            return
        if url.scheme not in ("https", "http") or not url.host:
            self._refuse(f"an address that is no https: {url.scheme}")
        if url.userinfo:
            self._refuse("an address with a user in it")
        if url.scheme == "http" and not is_loopback(url.host):
            self._refuse(f"{said(url)}, which is not encrypted")
        if origin(self._named) not in self._met:
            self._met[origin(self._named)] = await _addresses(self._named)
        self._judge(url, await _addresses(url))

    def check_peer(self, url: httpx.URL, peer: str) -> None:
        """As `check`, of what was connected to: a name may stand for another address a moment later."""
        if origin(url) == origin(self._named):
            self._met[origin(url)] = [parsed(peer)]
        else:
            self._judge(url, [parsed(peer)])

    def _judge(self, url: httpx.URL, theirs: list[Address]) -> None:
        if why := refused(theirs, self._met[origin(self._named)]):
            self._refuse(f"{said(url)}, {why}")

    def _refuse(self, where: str) -> NoReturn:
        raise SourceError(f"{said(self._named)} leads to {where}")


def refused(theirs: list[Address], ours: list[Address]) -> str | None:
    """Why nobody is sent from a host with the addresses `ours` to one with `theirs`; None where they are.

    Public addresses are open to all. One of this machine leads on to this machine, one of a private network to private
    ones: what the operator named is there already. Link-local ones, where clouds keep credentials, are never asked.
    """
    for address in theirs:
        if address.is_global and not address.is_multicast and not any(address in network for network in _NOT_PUBLIC):
            continue
        same = (address.is_loopback and all(own.is_loopback for own in ours)) or (
            _private(address) and any(_private(own) for own in ours)
        )
        if not same:
            return f"which is {address}: no public address"
    return None


def parsed(text: str) -> Address:
    """An address, of IPv4 where it is one inside of IPv6. Raises ValueError."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address) or address.is_loopback or address.is_unspecified:
        return address
    if any(address in network for network in _AROUND_IPV4):
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour or address


def _private(address: Address) -> bool:
    return address.is_private and not (address.is_loopback or address.is_link_local or address.is_unspecified)


async def _addresses(url: httpx.URL) -> list[Address]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SourceError(f"{said(url)}: the name is not found ({error.strerror})") from None
    except UnicodeError:
        raise SourceError(f"{said(url)} has a host that is no name") from None
    return [parsed(str(entry[4][0])) for entry in found]
