"""The simulation, held to queues whose waiting times have a formula, and to what any service must do."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator

import pytest

from awnet.command.arrivals import arrivals
from awnet.planning.fleet import BALANCERS, Balancer, Client, Outcome, simulate
from awnet.planning.machine import Machine
from awnet.planning.replica import Shape
from awnet.planning.times import ServiceTimes

MILLISECOND = 0.001
ROOM = 1_000_000
REAL = ServiceTimes(
    executions={1: 1.1e-3, 2: 2.1e-3, 4: 4.1e-3, 8: 8.0e-3},
    read=1.5e-4,
    decode=1e-4,
    answer=1.5e-4,
    deliver=5e-5,
    spread=(0.9, 1, 1.1),
)


def poisson(rate: float, seconds: float = 30.0, seed: int = 1) -> Iterator[float]:
    return arrivals("poisson", rate, seconds, seed)


def mean_ms(outcome: Outcome) -> float:
    return 1000 * statistics.mean(outcome.latencies())


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_constant_service_waits_as_an_m_d_1_queue(load: float) -> None:
    """Pollaczek and Khinchine: the mean wait is load / (2 (1 - load)) services."""
    outcome = simulate(poisson(1000 * load), ServiceTimes({1: MILLISECOND}), Shape(1, max_batch=1, capacity=ROOM))
    assert mean_ms(outcome) == pytest.approx(1 + load / (2 * (1 - load)), rel=0.04)


@pytest.mark.slow
@pytest.mark.parametrize(("cores", "load"), [(1, 0.5), (3, 0.7)])
def test_exponential_service_waits_as_an_m_m_c_queue(cores: int, load: float) -> None:
    """Erlang's C: the mean wait is C / (c (1 - load)) services."""
    spread = [-math.log(1 - (at + 0.5) / 2000) for at in range(2000)]
    times = ServiceTimes({1: MILLISECOND}, spread=tuple(value / statistics.mean(spread) for value in spread))
    shape = Shape(cores, max_batch=1, capacity=ROOM)
    offered = load * cores
    last = offered**cores / math.factorial(cores) / (1 - load)
    waits = last / (sum(offered**k / math.factorial(k) for k in range(cores)) + last)
    assert mean_ms(simulate(poisson(1000 * offered), times, shape)) == pytest.approx(
        1 + waits / (cores * (1 - load)), rel=0.06
    )


@pytest.mark.parametrize("balance", BALANCERS)
def test_every_request_ends_once(balance: Balancer) -> None:
    """Under twice the load that can be served and with a short queue; answered and refused ones are all there were."""
    due = list(poisson(3000, 2))
    shape = Shape(2, workers=2, capacity=32)
    outcome = simulate(due, REAL, shape, 2, balance)
    assert [request.due for request in outcome.requests] == due
    assert all(request.ended is not None and request.ended >= request.due for request in outcome.requests)
    assert 0 < outcome.refused < len(due)
    assert len(outcome.latencies()) + outcome.refused == len(due)
    assert outcome.images == len(outcome.latencies())


def test_cores_are_busy_for_as_long_as_the_work_takes() -> None:
    outcome = simulate(poisson(400, 10), REAL, Shape(1, max_batch=1))
    work = len(outcome.requests) * (REAL.read + REAL.decode + REAL.answer + REAL.deliver + REAL.executions[1])
    assert outcome.core_seconds == pytest.approx(work, rel=0.02)
    assert outcome.replica_seconds == pytest.approx(outcome.seconds)


def test_the_same_seed_gives_the_same_answer_times() -> None:
    def ends(seed: int) -> list[float]:
        return simulate(poisson(900, 3), REAL, Shape(1), 2, "two", seed).latencies()

    assert ends(3) == ends(3) != ends(4)


def test_a_clock_that_has_run_for_days_still_ends_tasks() -> None:
    """Rest of work that no step of the clock could do any more once held the simulation up for ever."""
    days = 10 * 86_400.0
    outcome = simulate([days + at / 100 for at in range(50)], REAL, Shape(2))
    assert len(outcome.latencies()) == 50


def test_an_event_loop_goes_before_the_engine() -> None:
    """Who computes gets what is left of the cores, in equal parts."""
    import simpy

    env, ended = simpy.Environment(), dict[str, float]()
    machine = Machine(env, 1)
    machine.run(1.0, lambda: ended.setdefault("one", env.now))
    machine.run(1.0, lambda: ended.setdefault("other", env.now))
    machine.run(0.5, lambda: ended.setdefault("loop", env.now), urgent=True)
    env.run()
    assert ended == pytest.approx({"loop": 0.5, "one": 2.5, "other": 2.5})
    assert machine.busy == pytest.approx(2.5)


def test_a_client_on_the_same_cores_takes_its_part() -> None:
    alone = simulate(poisson(500, 10), REAL, Shape(2), 1)
    beside = simulate(poisson(500, 10), REAL, Shape(2), 1, client=Client(4e-4, 4e-4))
    assert mean_ms(beside) > mean_ms(alone) + 0.8
    assert beside.core_seconds == pytest.approx(alone.core_seconds + len(alone.requests) * 8e-4, rel=0.05)


def test_a_balancer_that_looks_beats_one_that_does_not() -> None:
    """p99 of eight replicas at 80 % of what they can do: fewest under way, the emptier of two, any."""
    p99 = {}
    for balance in BALANCERS:
        latencies = simulate(poisson(0.8 * 8 * REAL.capacity(1, 8), 3), REAL, Shape(1), 8, balance).latencies()
        p99[balance] = latencies[int(0.99 * len(latencies))]
    assert p99["least"] < p99["two"] < p99["random"]
    assert p99["round-robin"] < p99["random"]


def test_batches_fill_as_the_load_grows() -> None:
    """The policy is the server's own: what waits is run together."""

    def images(rate: float) -> float:
        outcome = simulate(poisson(rate, 3), REAL, Shape(1))
        return outcome.images / outcome.batches

    assert 1 <= images(100) < images(500) < images(900) <= 8


def test_bad_luck_is_drawn_for_each_execution() -> None:
    rng = random.Random(0)
    spread = tuple(rng.expovariate(1) for _ in range(100))
    wide = ServiceTimes(REAL.executions, spread=tuple(value / statistics.mean(spread) for value in spread))
    even = ServiceTimes(REAL.executions)
    assert mean_ms(simulate(poisson(500), wide, Shape(1))) > 1.3 * mean_ms(simulate(poisson(500), even, Shape(1)))
