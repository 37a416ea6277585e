"""Autoscalers in a burst: what they ask for, how fast they may go, and when they look."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from awnet.command.arrivals import arrivals
from awnet.planning.autoscaling import Autoscaling
from awnet.planning.fleet import Outcome, simulate
from awnet.planning.replica import Shape
from awnet.planning.times import ServiceTimes

TIMES = ServiceTimes({1: 0.01})  # a hundred a second a core
SHAPE = Shape(1, max_batch=1, capacity=64)


def burst(calm: float, loud: float, begin: float, end: float, whole: float) -> Iterator[float]:
    yield from arrivals("poisson", calm, begin)
    yield from (begin + due for due in arrivals("poisson", loud, end - begin, 1))
    yield from (end + due for due in arrivals("poisson", calm, whole - end, 2))


def served(scaling: Autoscaling, *load: float) -> Outcome:
    return simulate(burst(*load), TIMES, SHAPE, scaling.minimum, control=scaling.control)


def test_the_queue_asks_for_more_than_a_full_cpu_can() -> None:
    """At 100 % of the cores CPU asks for 1 / 0.7 as many, whatever waits; the queue for as many as hold it."""
    queues, shares = [200, 200], [200 / 256] * 2
    assert Autoscaling("cpu").wanted(2, queues, shares, 1.0) == 3
    assert Autoscaling("queue").wanted(2, queues, shares, 1.0) == 13


def test_a_ratio_near_one_changes_nothing() -> None:
    assert Autoscaling("cpu").wanted(10, [], [], 0.76) == 10
    assert Autoscaling("cpu").wanted(10, [], [], 0.80) == 12
    assert Autoscaling("queue").wanted(4, [34] * 4, [0.1] * 4, 1.0) == 4


def test_one_hot_pod_is_enough() -> None:
    assert Autoscaling("queue").wanted(4, [200, 0, 0, 0], [200 / 256, 0, 0, 0], 0.3) == 13


@pytest.mark.parametrize(("grow", "up"), [(1.0, 30.0), (3.0, 15.0)])
def test_replicas_grow_no_faster_than_they_may(grow: float, up: float) -> None:
    outcome = served(Autoscaling("queue", maximum=32, grow=grow, up=up), 20, 1000, 20, 80, 81)
    for when, count in outcome.sizes:
        before = [c for at, c in outcome.sizes if at <= when - up]
        assert count <= (1 + grow) * max(before[-1:] or [2]), (when, count)
    assert max(count for _, count in outcome.sizes) == (8 if grow == 1 else 32)


@pytest.mark.slow
def test_on_the_queue_a_burst_is_over_sooner_than_on_cpu() -> None:
    """Fewer requests are refused, since more replicas come sooner; nobody is lost when they leave."""
    outcomes = {
        on: served(Autoscaling(on, maximum=16, grow=3.0, up=15.0), 50, 600, 20, 110, 111)  # type: ignore[arg-type]
        for on in ("queue", "cpu")
    }
    for outcome in outcomes.values():
        assert all(request.ended is not None for request in outcome.requests)
    assert outcomes["queue"].refused < 0.7 * outcomes["cpu"].refused


def test_replicas_leave_slowly_and_down_to_the_least() -> None:
    outcome = served(Autoscaling("queue", patience=60, maximum=16), 50, 500, 10, 70, 500)
    most = max(count for _, count in outcome.sizes)
    after = [(when, count) for when, count in outcome.sizes if when > 70 + 60]
    assert most >= 6 and after[-1][1] == 2
    counts = [most, *(count for _, count in after)]
    assert all(later >= int(0.75 * sooner) for sooner, later in pairwise(counts))


def test_a_calm_fleet_is_left_alone() -> None:
    outcome = served(Autoscaling("queue"), 20, 20, 30, 60, 300)
    assert outcome.sizes[-1][1] == 2 and outcome.refused == 0


def test_replicas_are_paid_for_while_they_start() -> None:
    outcome = served(Autoscaling("queue", start=20.0), 50, 300, 10, 50, 60)
    grown = next(when for when, count in outcome.sizes if count > 2)
    assert grown >= 15 + 20
    assert outcome.replica_seconds > 2 * outcome.seconds + 40


@pytest.mark.parametrize("on", ["queue", "cpu"])
def test_never_more_than_the_most(on: str) -> None:
    outcome = served(Autoscaling(on, maximum=5), 20, 1000, 20, 80, 81)  # type: ignore[arg-type]
    assert max(count for _, count in outcome.sizes) == 5
