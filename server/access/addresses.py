"""Where a request comes from: the client's own address, also behind proxies that are trusted to tell it.

A trusted proxy appends the address that it was connected from to `X-Forwarded-For`, or to `Forwarded` (RFC 7239). What
stands further left came with the request and may be invented, so the list is read from the right, through
trusted proxies, up to the first address that is none. Only one of the two headers is read: a proxy that writes one
passes the other on as the client sent it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
ForwardedHeader = Literal["x-forwarded-for", "forwarded"]

MAX_HOPS = 16  # proxies that are followed; a longer list was not written by one's own

_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*("[^"]*"|[^";\s]+)\s*(?=;|$)', re.IGNORECASE)
_PORT = re.compile(r":[0-9]{1,5}")


class TrustedProxies:
    """The proxies whose word on an address is taken.

    Args:
        networks: of the proxies.
        header: the one that they write.
    """

    def __init__(self, networks: Iterable[Network] = (), header: ForwardedHeader = "x-forwarded-for") -> None:
        self._networks = tuple(networks)
        self._header = header
        self._name = header.encode()
        self.trusts = lru_cache(1024)(self._trusts)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def _trusts(self, address: str) -> bool:
        """Whether a proxy of ours is at this address."""
        found = parse_address(address)
        return found is not None and any(found in network for network in self._networks)

    def client(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The client of a request.

        Args:
            peer: address that the connection came from, or that its PROXY header names.
            headers: names in lower case, in their order.

        Returns:
            The right-most address that is no trusted proxy's; where none is to be found, or an entry is no address,
            the address of the last proxy that is known.
        """
        if not self._networks or not self.trusts(peer):
            return peer
        value = b",".join(value for name, value in headers if name == self._name).decode("latin-1")
        known = peer
        entries = value.rsplit(",", MAX_HOPS)[-MAX_HOPS:] if value else []
        for entry in reversed(entries):
            found = self._entry(entry.strip())
            if found is None:
                return known
            known = str(found)
            if not self.trusts(known):
                return known
        return known

    def _entry(self, text: str) -> Address | None:
        if self._header == "forwarded":
            match = _FOR.search(text)
            if match is None:
                return None
            text = match[1].strip('"')
        return parse_address(text)


def parse_address(text: str) -> Address | None:
    """An address, also with a port, in brackets or with a zone, IPv4 within IPv6 as IPv4; None where it is none."""
    if text.startswith("["):
        inside, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _PORT.fullmatch(port)) or ":" not in inside:
            return None
        text = inside
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _PORT.fullmatch(f":{port}"):
            return None
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


@lru_cache(1024)
def client_of(address: str) -> str:
    """Who is counted as one client: an IPv4 address, or the /64 of an IPv6 address, which one customer is given."""
    found = parse_address(address)
    if found is None:
        return address
    return str(found) if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))
