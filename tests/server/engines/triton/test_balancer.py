"""Who gets the next images: room, order, priority, breakers. No clock and no network are involved."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.engines.triton.balancer import Address, Balancer, Key
from server.errors import EngineUnavailable

ONE, TWO = Key("awnet", 1, "a"), Key("awnet", 2, "b")


def play(count: int, test: Callable[[Balancer, list[Address]], Awaitable[None]], **options: Any) -> None:
    """Run `test` with addresses that are up and serve version 1."""

    async def go() -> None:
        addresses = [Address(f"host-{i}:1") for i in range(count)]
        balancer = Balancer(addresses, **{"room": 4, "failures": 2, **options})
        for address in addresses:
            balancer.bring_in(address, {ONE})
        await test(balancer, addresses)

    asyncio.run(asyncio.wait_for(go(), 30))


async def settle() -> None:
    """Let everything that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def ask(balancer: Balancer, images: int = 1, **options: Any) -> asyncio.Task[Address]:
    return asyncio.create_task(balancer.acquire(options.pop("key", ONE), images, **options))


def test_the_least_loaded_is_taken_and_equals_take_turns() -> None:
    """By images, not by requests."""

    async def test(balancer: Balancer, addresses: list[Address]) -> None:
        first, second = addresses
        assert await balancer.acquire(ONE, 3) is first
        assert [await balancer.acquire(ONE, 1) for _ in range(3)] == [second] * 3
        for address, images in ((first, 3), (second, 3)):
            balancer.release(address, images)
        taken = [await balancer.acquire(ONE, 1) for _ in range(4)]
        assert taken.count(first) == taken.count(second) == 2

    play(2, test)


def test_a_large_request_is_not_overtaken_for_ever() -> None:
    """What frees up is kept for the one that has waited longest."""

    async def test(balancer: Balancer, addresses: list[Address]) -> None:
        (only,) = addresses
        for _ in range(4):
            await balancer.acquire(ONE, 1)
        large, small = ask(balancer, 3), ask(balancer, 1)
        balancer.release(only, 1)
        await settle()
        assert not large.done() and not small.done()
        balancer.release(only, 2)
        await settle()
        assert large.done() and not small.done()

    play(1, test)


def test_who_waits_for_one_address_does_not_hold_up_the_others() -> None:
    """A request that was refused at one address waits for the second; the first stays open to the rest."""

    async def test(balancer: Balancer, addresses: list[Address]) -> None:
        first, second = addresses
        await balancer.acquire(ONE, 4, tried=[first])
        waiting = ask(balancer, 1, tried=[first])
        await settle()
        assert await balancer.acquire(ONE, 1) is first
        assert not waiting.done()
        balancer.release(second, 4)
        assert await waiting is second

    play(2, test)


def test_low_priority_goes_when_nothing_else_waits() -> None:
    """However long it has waited."""

    async def test(balancer: Balancer, addresses: list[Address]) -> None:
        (only,) = addresses
        await balancer.acquire(ONE, 4)
        low, normal = ask(balancer, 4, priority="low"), ask(balancer, 4)
        await settle()
        balancer.release(only, 4)
        await settle()
        assert normal.done() and not low.done()
        balancer.release(only, 4)
        assert await low is only

    play(1, test)


def test_a_place_given_in_the_moment_of_giving_up_is_given_back() -> None:
    """Otherwise each such moment would take room away for good."""

    async def test(balancer: Balancer, addresses: list[Address]) -> None:
        (only,) = addresses
        await balancer.acquire(ONE, 4)
        waiting = ask(balancer, 4)
        await settle()
        balancer.release(only, 4)  # hands the place over ...
        waiting.cancel()  # ... to someone who leaves before hearing of it
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert only.load == 0
        assert await balancer.acquire(ONE, 4) is only

    play(1, test)


def test_nobody_waits_for_what_cannot_come() -> None:
    """A version that nobody serves, and all addresses taken out: refused at once, also those who wait already."""

    async def test(balancer: Balancer, addresses: list[Address]) -> None:
        with pytest.raises(EngineUnavailable):
            await balancer.acquire(TWO, 1)
        for address in addresses:
            await balancer.acquire(ONE, 4, tried=[a for a in addresses if a is not address])
        waiting = ask(balancer)
        await settle()
        for address in addresses:
            balancer.take_out(address, "gone")
        with pytest.raises(EngineUnavailable):
            await waiting
        assert not balancer.up()

    play(2, test)


def test_a_lost_connection_holds_requests_back_until_it_is_known_who_is_there() -> None:
    """Proven again: they are sent. Not proven: they are refused. What was proven before counts for nothing."""

    async def test(balancer: Balancer, addresses: list[Address]) -> None:
        (only,) = addresses
        epoch = only.epoch
        balancer.suspect(only)
        assert only.epoch != epoch and not only.serves and balancer.up()
        waiting = ask(balancer)
        await settle()
        assert not waiting.done()
        balancer.bring_in(only, {ONE})
        assert await waiting is only
        balancer.suspect(only)
        waiting = ask(balancer)
        await settle()
        balancer.take_out(only, "nobody there")
        with pytest.raises(EngineUnavailable):
            await waiting

    play(1, test)


def test_the_breaker_counts_failures_in_a_row_and_ends_what_is_in_flight() -> None:
    """It tells every change of state once."""
    states: list[tuple[str, bool]] = []

    async def test(balancer: Balancer, addresses: list[Address]) -> None:
        (only,) = addresses
        call = asyncio.create_task(asyncio.sleep(60))
        only.calls.add(call)
        for _ in range(3):
            balancer.failed(only, "broken")
            balancer.succeeded(only)
        assert only.state == "up"
        balancer.failed(only, "broken")
        balancer.failed(only, "broken")
        assert only.state == "down"
        balancer.take_out(only, "again")
        await settle()
        assert call.cancelled()
        balancer.bring_in(only, {ONE})
        balancer.bring_in(only, {ONE, TWO})
        assert states == [("host-0:1", True), ("host-0:1", False), ("host-0:1", True)]

    play(1, test, on_state=lambda url, up: states.append((url, up)))
