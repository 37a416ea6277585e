"""Who the client is, behind proxies of ours and behind a stranger's invention."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from server.access.addresses import MAX_HOPS, TrustedProxies, client_of, parse_address

OURS = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
XFF, FORWARDED = b"x-forwarded-for", b"forwarded"


def client(peer: str, *values: str) -> str:
    return TrustedProxies(OURS).client(peer, [(XFF, value.encode("latin-1")) for value in values])


def forwarded(peer: str, *values: str) -> str:
    return TrustedProxies(OURS, "forwarded").client(peer, [(FORWARDED, value.encode("latin-1")) for value in values])


def test_a_stranger_cannot_name_another_address():
    """Only the word of a trusted proxy counts, and only where one is trusted at all."""
    assert client("6.6.6.6", "1.1.1.1") == "6.6.6.6"
    assert TrustedProxies().client("10.0.0.1", [(XFF, b"1.1.1.1")]) == "10.0.0.1"


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["1.1.1.1"], "1.1.1.1"),
        (["9.9.9.9, 1.1.1.1"], "1.1.1.1"),
        (["9.9.9.9, 1.1.1.1, 10.0.0.2"], "1.1.1.1"),
        (["9.9.9.9", "1.1.1.1, 10.0.0.2"], "1.1.1.1"),
        (["1.1.1.1", "10.0.0.3", "10.0.0.2"], "1.1.1.1"),
        (["10.0.0.3,10.0.0.2"], "10.0.0.3"),
        (["1.1.1.1:4711"], "1.1.1.1"),
        (["2001:DB8::1"], "2001:db8::1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["::ffff:1.1.1.1"], "1.1.1.1"),
        (["1.1.1.1, fd00::1"], "1.1.1.1"),
        (["10.0.0.4, rubbish, 10.0.0.2"], "10.0.0.2"),
        (["1.1.1.1, unknown"], "10.0.0.1"),
        (["1.1.1.1, "], "10.0.0.1"),
        ([""], "10.0.0.1"),
        ([], "10.0.0.1"),
        (["1.1.1.1\xff"], "10.0.0.1"),
        (["1.1.1.1, 1.1.1.1:port"], "10.0.0.1"),
        (["1.1.1.1, [::1"], "10.0.0.1"),
        (["1.1.1.1, ::1:2:3:4:5:6:7:8:9"], "10.0.0.1"),
    ],
)
def test_the_right_most_address_that_is_no_proxy_is_the_client(values, found):
    """Whatever stands left of it may be invented; behind what is no address, nothing is believed."""
    assert client("10.0.0.1", *values) == found


def test_a_proxy_is_recognised_by_its_mapped_address_too():
    """So does a socket of both families show it."""
    assert client("::ffff:10.0.0.1", "1.1.1.1") == "1.1.1.1"


def test_a_long_list_is_not_followed_to_its_end():
    """A hundred entries cost what sixteen do; what is found is a proxy, never what stands further left."""
    chain = ", ".join(["1.1.1.1", *[f"10.0.1.{n}" for n in range(100)]])
    assert client("10.0.0.1", chain) == f"10.0.1.{100 - MAX_HOPS}"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("for=1.1.1.1", "1.1.1.1"),
        ("by=10.0.0.1;For=1.1.1.1;proto=https", "1.1.1.1"),
        ('for="[2001:db8::1]:4711"', "2001:db8::1"),
        ('for=9.9.9.9, for="1.1.1.1:80";proto=http', "1.1.1.1"),
        ("for=1.1.1.1, for=10.0.0.2", "1.1.1.1"),
        ("for=1.1.1.1, for=unknown", "10.0.0.1"),
        ("for=1.1.1.1, for=_hidden", "10.0.0.1"),
        ("for=1.1.1.1, proto=https", "10.0.0.1"),
        ('for="1.1.1.1', "10.0.0.1"),
    ],
)
def test_forwarded_is_read_as_rfc_7239_has_it(value, found):
    """Names in any case, quotes around IPv6, obfuscated names believed to be nobody."""
    assert forwarded("10.0.0.1", value) == found


def test_only_the_header_that_the_proxies_write_is_read():
    """The other one passes through a proxy as the client sent it."""
    both = [(XFF, b"1.1.1.1"), (FORWARDED, b"for=6.6.6.6")]
    assert TrustedProxies(OURS).client("10.0.0.1", both) == "1.1.1.1"
    assert TrustedProxies(OURS, "forwarded").client("10.0.0.1", both) == "6.6.6.6"


def test_a_customer_is_one_client_however_many_addresses_it_has():
    """An IPv6 customer has 2^64 of them."""
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:1") != client_of("2001:db8:0:1::1")
    assert client_of("::ffff:1.1.1.1") == client_of("1.1.1.1") == "1.1.1.1"
    assert client_of("fe80::1%eth0") == "fe80::/64"


def test_what_is_no_address_is_none():
    assert [
        parse_address(text) for text in ("", "1", "1.2.3", "1.2.3.4:", "[1.2.3.4]", "a:b", "[::1]x", "01.2.3.4")
    ] == [None] * 8
