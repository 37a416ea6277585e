"""The least number of replicas that keeps a promise, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .balancers import Balancer
from .fleet import simulate
from .replica import Shape
from .times import ServiceTimes

HOURS_A_MONTH = 730.0
REFUSED = 0.001  # share of requests that a promise may lose
CELL = 64  # replicas that are simulated at most: more behave as so many of them do under their share of the load
EACH = 500  # requests that are simulated at least for each replica
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
    """What so many replicas make of the load.

    Attributes:
        p50, p99: seconds, of requests that were answered.
        refused: share of requests.
        busy: share of the cores' time.
        batch: images in an execution, on average.
    """

    replicas: int
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


def level(replicas: int, load: Load, times: ServiceTimes, shape: Shape) -> Level:
    """One simulation."""
    cell = min(replicas, CELL)
    rate = load.rate * cell / replicas
    seconds = max(load.requests, EACH * cell) / rate
    outcome = simulate(load.comes(rate, seconds), times, shape, cell, load.balance, load.seed)
    counted = outcome.latencies(since=WARM * seconds)
    return Level(
        replicas=replicas,
        p50=quantile(counted, 0.5),
        p99=quantile(counted, 0.99),
        refused=outcome.refused / len(outcome.requests) if outcome.requests else 0.0,
        busy=outcome.core_seconds / (outcome.seconds * shape.cores * cell),
        batch=outcome.images / max(1, outcome.batches),
    )


def smallest(
    load: Load, times: ServiceTimes, shape: Shape, goal: Goal, on_level: Callable[[Level], object] = lambda level: None
) -> tuple[Level | None, list[Level]]:
    """The least number of replicas that reaches the goal, and all that were tried.

    None where no number does: a request alone takes longer.
    """
    tried: dict[int, Level] = {}

    def at(replicas: int) -> Level:
        if replicas not in tried:
            tried[replicas] = level(replicas, load, times, shape)
            on_level(tried[replicas])
        return tried[replicas]

    low = max(1, math.ceil(load.rate / times.capacity(shape.cores, shape.max_batch) / goal.busy))
    high = low
    while not at(high).keeps(goal):
        if at(high).busy < 0.01:
            return None, sorted(tried.values(), key=lambda level: level.replicas)
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        if at(middle).keeps(goal):
            high = middle
        else:
            low = middle + 1
    return at(high), sorted(tried.values(), key=lambda level: level.replicas)


def month(replicas: int, times: ServiceTimes, shape: Shape, price: Price) -> float:
    """What so many replicas cost a month of 730 hours."""
    hour = shape.cores * price.vcpu + shape.workers * times.memory_mb / 1000 * price.gigabyte
    return replicas * hour * HOURS_A_MONTH


def million(replicas: int, rate: float, times: ServiceTimes, shape: Shape, price: Price) -> float:
    """What a million images cost at that rate."""
    return month(replicas, times, shape, price) / (rate * HOURS_A_MONTH * 3600) * 1e6


def quantile(ordered: list[float], q: float) -> float:
    """The smallest value that a share q does not exceed; infinite where there is none."""
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else math.inf
