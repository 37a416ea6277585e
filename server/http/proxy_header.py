"""The PROXY header, versions 1 and 2, with which a balancer begins a connection to say whose it is.

Source: W. Tarreau, "The PROXY protocol", versions 1 and 2 (haproxy's doc/proxy-protocol.txt). Bytes in, no sockets.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from ..access.addresses import parse_address

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V1 = b"PROXY "
V1_BYTES = 107  # the longest line that the specification allows
MAX_BYTES = 4096  # of version 2, whose own bound is 65,551: addresses take 36, and what may follow is not read

_HEAD = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPEC, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_PORTS = struct.Struct("!HH")


class MalformedHeaderError(Exception):
    """What came is no PROXY header."""


class Source(NamedTuple):
    """Where the client connected from."""

    host: str
    port: int


def length_of(begun: bytes) -> int | None:
    """Bytes of the header that begins with `begun`; None where more has to come. Raises MalformedHeaderError."""
    if begun.startswith(V1[: len(begun)]):
        end = begun.find(b"\r\n", 0, V1_BYTES)
        if end >= 0:
            return end + 2
        if len(begun) >= V1_BYTES:
            raise MalformedHeaderError
        return None
    if not begun.startswith(SIGNATURE[: len(begun)]):
        raise MalformedHeaderError
    if len(begun) < _HEAD.size:
        return None
    length = _HEAD.size + int(_HEAD.unpack_from(begun)[3])
    if length > MAX_BYTES:
        raise MalformedHeaderError
    return length


def parse(header: bytes) -> Source | None:
    """The client of a whole header; None where it names none, as in a balancer's own checks.

    Raises MalformedHeaderError.
    """
    return _version_1(header) if header.startswith(V1) else _version_2(header)


def _version_1(header: bytes) -> Source | None:
    try:
        _, family, *rest = header[:-2].decode("ascii").split(" ")
        if family == "UNKNOWN":
            return None
        source, destination, source_port, destination_port = rest
    except ValueError:
        raise MalformedHeaderError from None
    for text in (source, destination):
        try:
            socket.inet_pton({"TCP4": socket.AF_INET, "TCP6": socket.AF_INET6}[family], text)
        except (KeyError, OSError, ValueError):
            raise MalformedHeaderError from None
    for text in (source_port, destination_port):
        if not text.isdigit() or len(text) > 5 or int(text) > 65535:
            raise MalformedHeaderError
    return Source(_plain(source), int(source_port))


def _version_2(header: bytes) -> Source | None:
    _, command, family, _ = _HEAD.unpack_from(header)
    if command == _LOCAL:
        return None
    if command != _PROXY or family not in (_UNSPEC, _TCP4, _TCP6, _UNIX):
        raise MalformedHeaderError
    if family in (_UNSPEC, _UNIX):
        return None
    size, kind = (4, socket.AF_INET) if family == _TCP4 else (16, socket.AF_INET6)
    at = _HEAD.size
    if len(header) < at + 2 * size + _PORTS.size:
        raise MalformedHeaderError
    return Source(
        _plain(socket.inet_ntop(kind, header[at : at + size])), int(_PORTS.unpack_from(header, at + 2 * size)[0])
    )


def _plain(address: str) -> str:
    return str(parse_address(address))
