"""How much one client may ask: rates that hold to the second, in memory that no flood makes grow."""

from __future__ import annotations

import random

import pytest

from server.access.caller import Rate
from server.access.rates import SETS, WAYS, QueueShares, Rates, shared_memory
from server.errors import QueueShareTaken, RateLimited


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refused(rates: Rates, client: str = "a", own: Rate | None = None, requests: int = 1, before: int = 0) -> int:
    """Seconds until it is answered; 0 where it is."""
    try:
        rates.charge(client, own, requests, before)
    except RateLimited as error:
        return error.retry_after_seconds
    return 0


def test_a_burst_passes_and_then_the_rate(clock: Clock) -> None:
    """Ten at once, then two a second, for as long as somebody counts."""
    rates = Rates(Rate(2.0, 10), clock=clock)
    assert [refused(rates) for _ in range(11)] == [0] * 10 + [1]
    passed = 0
    for _ in range(10_000):
        clock.now += 0.01
        passed += not refused(rates)
    assert passed == pytest.approx(200, abs=1)


def test_an_idle_client_has_its_burst_again_and_no_more(clock: Clock) -> None:
    rates = Rates(Rate(2.0, 10), clock=clock)
    for _ in range(3):
        clock.now += 3600
        assert [refused(rates) for _ in range(11)] == [0] * 10 + [1]


@pytest.mark.parametrize("rate", [Rate(0.5, 1), Rate(0.1, 3), Rate(1.0, 1), Rate(7.3, 4), Rate(0.003, 2)])
def test_retry_after_is_right_to_the_second(clock: Clock, rate: Rate) -> None:
    """Then the request passes, and a second before it would not have."""
    rates = Rates(rate, clock=clock)
    rng = random.Random(0)
    for _ in range(200):
        seconds = refused(rates)
        if seconds:
            begun = clock.now
            if seconds > 1:
                clock.now = begun + seconds - 1
                assert refused(rates) == 1
            clock.now = begun + seconds
            assert refused(rates) == 0
        clock.now += rng.random()


def test_each_client_has_its_own_bucket_and_a_key_its_own_rate(clock: Clock) -> None:
    rates = Rates(Rate(1.0, 1), clock=clock)
    assert [refused(rates, client) for client in ("a", "b", "a", "b")] == [0, 0, 1, 1]
    assert [refused(rates, "key c", Rate(10.0, 3)) for _ in range(4)] == [0, 0, 0, 1]
    unlimited = Rates(None, clock=clock)
    assert not any(refused(unlimited) for _ in range(1000))
    assert [refused(unlimited, "key c", Rate(1.0, 1)) for _ in range(2)] == [0, 1]


def test_further_images_count_as_requests(clock: Clock) -> None:
    """Of a request that fits the bucket: refused where there are too few tokens, with the time until all of it fits."""
    rates = Rates(Rate(1.0, 10), clock=clock)
    assert refused(rates) == 0 and refused(rates, requests=7, before=1) == 0
    assert refused(rates) == 0 and refused(rates, requests=7, before=1) == 7  # one token is left, eight are needed
    clock.now += 7
    assert refused(rates) == 0 and refused(rates, requests=7, before=1) == 0


def test_more_images_than_a_bucket_holds_are_paid_off_afterwards(clock: Clock) -> None:
    """Or such a request would be impossible; and where the bucket is not full, it waits."""
    rates = Rates(Rate(1.0, 4), clock=clock)
    assert refused(rates) == 0 and refused(rates, requests=31, before=1) == 0
    assert refused(rates) == 29
    clock.now += 29
    assert refused(rates) == 0 and refused(rates, requests=31, before=1) == 4
    one = Rates(Rate(1.0, 1), clock=clock)
    assert refused(one) == 0 and refused(one, requests=3, before=1) == 0
    assert refused(one) == 4


def test_a_flood_of_addresses_takes_no_more_memory_and_no_long_time(clock: Clock) -> None:
    """As many clients as there is room for, of which some share a set: each is still bounded while it is known."""
    rates = Rates(Rate(0.001, 1), clock=clock)
    for n in range(SETS * WAYS):
        rates.charge(f"2001:db8:{n:x}::/64", None)
    assert refused(rates, "new") == 0 and refused(rates, "new") == 1000


def test_a_bucket_that_is_full_again_makes_room_first(clock: Clock) -> None:
    """A client that is bounded stays so while idle ones are there to forget."""
    rates = Rates(Rate(0.01, 1), clock=clock)
    for n in range(SETS * WAYS):
        rates.charge(f"idle {n}", None)
    clock.now += 100
    bounded = [f"busy {n}" for n in range(100)]
    for client in bounded:
        rates.charge(client, None)
    for n in range(SETS):
        rates.charge(f"more {n}", None)
    assert sum(refused(rates, client) > 0 for client in bounded) == 100


def test_several_processes_share_the_buckets(clock: Clock) -> None:
    """Whichever worker is asked: the rate is that of the service."""
    memory = shared_memory()
    first, second = (Rates(Rate(1.0, 4), memory, b"salt", clock) for _ in range(2))
    assert [refused(rates) for rates in (first, second, second, first, second, first)] == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("rate", [5e-324, 1e-300, 1e-9, 1e6, 1e300])
def test_no_rate_breaks_the_arithmetic(clock: Clock, rate: float) -> None:
    rates = Rates(None, clock=clock)
    for _ in range(5):
        assert 0 <= refused(rates, "a", Rate(rate, 1)) <= 86_400


def test_a_client_has_its_share_of_the_queue_and_gets_it_back() -> None:
    """In images; one request of any size passes where it has none, or it would never."""
    shares = QueueShares(10, 0.5)
    with shares.hold("a", 3), shares.hold("b", 5):
        with pytest.raises(QueueShareTaken, match="5 images"), shares.hold("a", 3):
            pass
        with shares.hold("a", 2), pytest.raises(QueueShareTaken), shares.hold("a", 1):
            pass
    with shares.hold("a", 9), pytest.raises(QueueShareTaken), shares.hold("a", 1):
        pass
    with shares.hold("a", 3), shares.hold("a", 7, own=1.0), shares.hold("a", 2, own=0.5):
        pass


def test_without_a_share_everybody_may_take_all() -> None:
    shares = QueueShares(2, 1.0)
    with shares.hold("a", 5), shares.hold("a", 5):
        pass
