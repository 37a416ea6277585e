"""Where an answer may lead: to public addresses, and to no place that only this machine or this network reaches."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from server.errors import SourceError
from server.model_sources import reach
from server.model_sources.reach import Reach, parsed, refused
from tests.server.model_sources.conftest import Fetch
from tests.server.model_sources.static import Static, body, redirect, serving

PUBLIC, PRIVATE, LOOPBACK = "93.184.216.34", "10.1.2.3", "127.0.0.1"


@pytest.mark.parametrize(
    ("ours", "theirs", "led"),
    [
        (PUBLIC, PUBLIC, True),
        (PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        (PUBLIC, PRIVATE, False),
        (PUBLIC, LOOPBACK, False),
        (PUBLIC, "::1", False),
        (PUBLIC, "::ffff:10.0.0.1", False),
        (PUBLIC, "100.64.0.1", False),
        (PUBLIC, "224.0.0.1", False),
        (PUBLIC, "fd00::1", False),
        (PUBLIC, "fec0::1", False),
        (PUBLIC, "64:ff9b::8.8.8.8", True),  # as DNS64 has it where there is no IPv4
        (PUBLIC, "64:ff9b::169.254.169.254", False),
        (PUBLIC, "64:ff9b:1::10.1.2.3", False),
        (PUBLIC, "::127.0.0.1", False),
        (PUBLIC, "::ffff:0:127.0.0.1", False),
        (PUBLIC, "2002:7f00:1::", False),
        (PRIVATE, "64:ff9b::169.254.169.254", False),
        ("::1", "64:ff9b::127.0.0.1", True),
        (PRIVATE, PUBLIC, True),
        (PRIVATE, "192.168.0.1", True),
        (PRIVATE, "fd00::1", True),
        (PRIVATE, LOOPBACK, False),
        (PRIVATE, "169.254.169.254", False),
        (PRIVATE, "fe80::1%eth0", False),
        (PRIVATE, "0.0.0.0", False),
        (LOOPBACK, "127.0.0.2", True),
        (LOOPBACK, PRIVATE, False),
        (LOOPBACK, "169.254.169.254", False),
    ],
)
def test_who_leads_where(ours: str, theirs: str, led: bool) -> None:
    assert (refused([parsed(theirs)], [parsed(ours)]) is None) == led


def test_one_address_among_several_is_enough_to_refuse() -> None:
    """Which of them is connected to is nobody's to choose."""
    assert refused([parsed(PUBLIC), parsed(PRIVATE)], [parsed(PUBLIC)])


def test_an_operators_own_address_is_asked_whatever_it_is() -> None:
    asyncio.run(Reach(httpx.URL(f"http://{PRIVATE}/a")).check(httpx.URL(f"http://{PRIVATE}/b")))
    with pytest.raises(SourceError, match="not encrypted"):
        asyncio.run(Reach(httpx.URL(f"http://{PRIVATE}/a")).check(httpx.URL(f"http://{PRIVATE}:8080/b")))


def test_a_name_that_stands_for_another_address_a_moment_later(
    fetch: Fetch, web: Static, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that was connected to is judged, too, before anything of the answer is taken."""

    async def public(url: httpx.URL) -> list[reach.Address]:
        return [parsed(PUBLIC)]

    monkeypatch.setattr(reach, "_addresses", public)
    monkeypatch.setattr(reach, "parsed", lambda peer: parsed(PUBLIC if peer == "127.0.0.1" else peer))
    with serving("127.0.0.2") as other:
        web.routes["/a"], other.routes["/b"] = redirect(f"{other.url}/b"), body(model)
        with pytest.raises(SourceError, match=r"leads to .*127\.0\.0\.2: no public address"):
            fetch(f"{web.url}/a")


def test_where_one_may_be_led_is_no_matter_of_what_a_server_says_of_its_own_name(
    fetch: Fetch, web: Static, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was reached at a public address; that its name stands for a private one now opens no private network."""

    async def private(url: httpx.URL) -> list[reach.Address]:
        return [parsed(PRIVATE)]

    monkeypatch.setattr(reach, "_addresses", private)
    monkeypatch.setattr(reach, "parsed", lambda peer: parsed(PUBLIC))
    web.routes["/a"] = redirect(f"https://{PRIVATE}/b")
    with pytest.raises(SourceError, match=rf"leads to .*{PRIVATE}: no public address"):
        fetch(f"{web.url}/a", seconds=2.0)


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b", "xn--"])
def test_a_host_that_is_no_name_is_said_in_a_line(fetch: Fetch, web: Static, host: str) -> None:
    web.routes["/a"] = redirect(f"https://{host}/b")
    with pytest.raises(SourceError, match=r"no name|no address|cannot be asked"):
        fetch(f"{web.url}/a")
