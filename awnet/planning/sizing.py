"""The least number of front ends that keeps a promise, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .fleet import Balancer, simulate
from .front_end import Shape
from .times import ServiceTimes

HOURS_A_MONTH = 730.0
REFUSED = 0.001  # share of requests that a promise may lose
CELL = 64  # front ends that are simulated at most: more behave as so many of them do under their share of the load
EACH = 500  # requests that are simulated at least for each front end
WARM = 0.1  # share of the time that is not counted
Comes = Callable[[float, float], Iterator[float]]  # (requests a second, seconds) -> when they are due


@dataclass(frozen=True, slots=True)
class Price:
    """Of an hour, in any currency."""

    vcpu: float
    gigabyte: float = 0.0


@dataclass(frozen=True, slots=True)
class Goal:
    """99 % are answered within `p99` seconds, and at most `busy` of the cores' time is used: room for what comes."""

    p99: float
    busy: float = 0.8


@dataclass(frozen=True, slots=True)
class Level:
    """What so many front ends make of the load.

    Attributes:
        p50, p99: seconds, of requests that were answered.
        refused: share of requests.
        busy: share of the cores' time.
        batch: images in an execution, on average.
    """

    front_ends: int
    p50: float
    p99: float
    refused: float
    busy: float
    batch: float

    def keeps(self, goal: Goal) -> bool:
        """Whether the promise is kept."""
        return self.p99 <= goal.p99 and self.refused <= REFUSED and self.busy <= goal.busy


@dataclass(frozen=True, slots=True)
class Load:
    """What comes: requests a second, how they come, how they are spread, and how many are simulated at least."""

    rate: float
    comes: Comes
    balance: Balancer = "least"
    seed: int = 0
    requests: int = 20_000


def level(front_ends: int, load: Load, times: ServiceTimes, shape: Shape) -> Level:
    """One simulation."""
    cell = min(front_ends, CELL)
    rate = load.rate * cell / front_ends
    seconds = max(load.requests, EACH * cell) / rate
    outcome = simulate(load.comes(rate, seconds), times, shape, cell, load.balance, load.seed)
    counted = outcome.latencies(since=WARM * seconds)
    return Level(
        front_ends=front_ends,
        p50=quantile(counted, 0.5),
        p99=quantile(counted, 0.99),
        refused=outcome.refused / len(outcome.requests) if outcome.requests else 0.0,
        busy=outcome.core_seconds / (outcome.seconds * shape.cores * cell),
        batch=outcome.images / max(1, outcome.batches),
    )


def smallest(
    load: Load, times: ServiceTimes, shape: Shape, goal: Goal, told: Callable[[Level], object] = lambda level: None
) -> tuple[Level | None, list[Level]]:
    """The least number of front ends that reaches the goal, and all that were tried.

    None where no number does: a request alone takes longer.
    """
    tried: dict[int, Level] = {}

    def at(front_ends: int) -> Level:
        if front_ends not in tried:
            tried[front_ends] = level(front_ends, load, times, shape)
            told(tried[front_ends])
        return tried[front_ends]

    low = max(1, math.ceil(load.rate / times.capacity(shape.cores, shape.max_batch) / goal.busy))
    high = low
    while not at(high).keeps(goal):
        if at(high).busy < 0.01:
            return None, sorted(tried.values(), key=lambda level: level.front_ends)
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        if at(middle).keeps(goal):
            high = middle
        else:
            low = middle + 1
    return at(high), sorted(tried.values(), key=lambda level: level.front_ends)


def month(front_ends: int, times: ServiceTimes, shape: Shape, price: Price) -> float:
    """What so many front ends cost a month of 730 hours."""
    hour = shape.cores * price.vcpu + shape.workers * times.memory_mb / 1000 * price.gigabyte
    return front_ends * hour * HOURS_A_MONTH


def million(front_ends: int, rate: float, times: ServiceTimes, shape: Shape, price: Price) -> float:
    """What a million images cost at that rate."""
    return month(front_ends, times, shape, price) / (rate * HOURS_A_MONTH * 3600) * 1e6


def quantile(ordered: list[float], q: float) -> float:
    """The smallest value that a share q does not exceed; infinite where there is none."""
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else math.inf
