"""The PROXY header byte by byte: what names a client, what names none, and what is none."""

from __future__ import annotations

import random
import socket
import struct

import pytest

from server.http.proxy_header import MAX_BYTES, SIGNATURE, V1_BYTES, MalformedHeaderError, Source, length_of, parse

TLV = b"\x04\x00\x03abc"


def v2(command: int = 0x21, family: int = 0x11, body: bytes = b"", length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body) if length is None else length) + body


def inet(source: str = "1.2.3.4", port: int = 4711) -> bytes:
    return socket.inet_aton(source) + socket.inet_aton("9.9.9.9") + struct.pack("!HH", port, 443)


def inet6(source: str, port: int = 4711) -> bytes:
    packed = [socket.inet_pton(socket.AF_INET6, text) for text in (source, "::1")]
    return b"".join(packed) + struct.pack("!HH", port, 443)


NAMED = [
    (b"PROXY TCP4 1.2.3.4 9.9.9.9 4711 443\r\n", Source("1.2.3.4", 4711)),
    (b"PROXY TCP6 2001:db8::1 ::1 4711 443\r\n", Source("2001:db8::1", 4711)),
    (b"PROXY TCP6 ::ffff:1.2.3.4 ::1 4711 443\r\n", Source("1.2.3.4", 4711)),
    (v2(body=inet()), Source("1.2.3.4", 4711)),
    (v2(body=inet() + TLV), Source("1.2.3.4", 4711)),
    (v2(family=0x21, body=inet6("2001:db8::1")), Source("2001:db8::1", 4711)),
    (v2(family=0x21, body=inet6("::ffff:1.2.3.4")), Source("1.2.3.4", 4711)),
]
NAMELESS = [
    b"PROXY UNKNOWN\r\n",
    b"PROXY UNKNOWN ffff:f... ffff:f... 65535 65535\r\n",
    v2(command=0x20),
    v2(command=0x20, family=0x00, body=TLV),
    v2(family=0x00, body=TLV),
    v2(family=0x31, body=b"/" * 216),
]
MALFORMED = [
    b"GET / HTTP/1.1\r\n",
    b"PROXY TCP4 1.2.3.4 9.9.9.9 4711\r\n",
    b"PROXY TCP4 1.2.3.4 9.9.9.9 4711 443 \r\n",
    b"PROXY  TCP4 1.2.3.4 9.9.9.9 4711 443\r\n",
    b"PROXY TCP4 1.2.3 9.9.9.9 4711 443\r\n",
    b"PROXY TCP4 ::1 ::1 4711 443\r\n",
    b"PROXY TCP6 1.2.3.4 9.9.9.9 4711 443\r\n",
    b"PROXY TCP4 1.2.3.4 9.9.9.9 65536 443\r\n",
    b"PROXY TCP4 1.2.3.4 9.9.9.9 -1 443\r\n",
    b"PROXY TCP4 1.2.3.4 9.9.9.9 4711 port\r\n",
    b"PROXY UDP4 1.2.3.4 9.9.9.9 4711 443\r\n",
    b"PROXY TCP4 \xff.2.3.4 9.9.9.9 4711 443\r\n",
    b"PROXY \r\n",
    b"PROXY " + b"x" * V1_BYTES,
    v2(command=0x11, body=inet()),
    v2(command=0x22, body=inet()),
    v2(family=0x12, body=inet()),
    v2(family=0x41, body=inet()),
    v2(body=inet()[:-1]),
    v2(family=0x21, body=inet()),
    v2(length=MAX_BYTES),
]


def read(data: bytes) -> Source | None:
    """As a connection reads it, with the first request behind it."""
    length = length_of(data + b"GET / HTTP/1.1\r\n")
    assert length == len(data)
    return parse(data)


@pytest.mark.parametrize(("header", "source"), NAMED)
def test_a_header_names_the_client(header, source):
    """Of both versions and families; what may follow the addresses is not read."""
    assert read(header) == source


@pytest.mark.parametrize("header", NAMELESS)
def test_a_header_may_name_nobody(header):
    """A balancer's own checks, and clients without an address of TCP."""
    assert read(header) is None


@pytest.mark.parametrize("header", MALFORMED)
def test_what_is_no_header_is_refused(header):
    """Whether its end is known or not."""
    with pytest.raises(MalformedHeaderError):
        read(header)


@pytest.mark.parametrize("header", [header for header, _ in NAMED] + NAMELESS)
def test_a_part_of_a_header_waits_for_the_rest(header):
    """However few bytes come at once, nothing is decided too early, and no part is taken for a whole."""
    for end in range(len(header)):
        assert length_of(header[:end]) in (None, len(header))


def test_nothing_but_malformed_is_raised():
    """Ten thousand headers with changed bytes."""
    rng = random.Random(0)
    headers = [header for header, _ in NAMED] + NAMELESS
    for _ in range(10_000):
        data = bytearray(rng.choice(headers))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            length = length_of(bytes(data))
            if length is not None and length <= len(data):
                parse(bytes(data[:length]))
        except MalformedHeaderError:
            pass
