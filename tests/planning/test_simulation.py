"""The simulation, held to queues whose waiting times have a formula, and to what any service must do."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import simpy

from awnet.command.arrivals import arrivals
from awnet.planning.balancers import BALANCERS, Balancer
from awnet.planning.fleet import Client, Outcome, simulate
from awnet.planning.machine import Lock, Machine, Thread
from awnet.planning.replica import Replica, Request, Shape
from awnet.planning.times import Cold, ServiceTimes

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


QUANTILES = [-math.log(1 - (at + 0.5) / 2000) for at in range(2000)]
EXPONENTIAL = ServiceTimes({1: MILLISECOND}, spread=tuple(value / statistics.mean(QUANTILES) for value in QUANTILES))
# A core more than threads of the engine, so that the event loop, which takes no time there, waits for none.
ONE = Shape(2, max_batch=1, capacity=ROOM, threads=1)


def poisson(rate: float, seconds: float = 30.0, seed: int = 1) -> Iterator[float]:
    return arrivals("poisson", rate, seconds, seed)


def mean_ms(outcome: Outcome) -> float:
    return 1000 * statistics.mean(outcome.latencies())


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_constant_service_waits_as_an_m_d_1_queue(load: float) -> None:
    """Pollaczek and Khinchine: the mean wait is load / (2 (1 - load)) services."""
    outcome = simulate(poisson(1000 * load), ServiceTimes({1: MILLISECOND}), ONE)
    assert mean_ms(outcome) == pytest.approx(1 + load / (2 * (1 - load)), rel=0.04)


@pytest.mark.slow
@pytest.mark.parametrize(("cores", "load"), [(1, 0.5), (3, 0.7)])
def test_exponential_service_waits_as_an_m_m_c_queue(cores: int, load: float) -> None:
    """Erlang's C: the mean wait is C / (c (1 - load)) services."""
    shape = Shape(cores + 1, max_batch=1, capacity=ROOM, threads=cores)
    offered = load * cores
    last = offered**cores / math.factorial(cores) / (1 - load)
    waits = last / (sum(offered**k / math.factorial(k) for k in range(cores)) + last)
    assert mean_ms(simulate(poisson(1000 * offered), EXPONENTIAL, shape)) == pytest.approx(
        1 + waits / (cores * (1 - load)), rel=0.06
    )


@pytest.mark.parametrize("clients", [3, 12])
def test_clients_that_think_are_answered_as_machines_are_repaired(clients: int) -> None:
    """Palm: of n machines that run for exponential times until one repairman, as slow, has them again, so many run."""
    think, seconds = 5 * MILLISECOND, 30.0
    env, rng = simpy.Environment(), random.Random(1)
    replica, ended = Replica(env, EXPONENTIAL, ONE, rng), 0

    def again(request: Request | None = None) -> None:
        nonlocal ended
        ended += request is not None
        pause = env.timeout(rng.expovariate(1 / think))
        pause.callbacks.append(lambda _: replica.offer(Request(env.now), again))

    for _ in range(clients):
        again()
    env.run(until=seconds)
    idle = 1 / sum(math.perm(clients, k) * (MILLISECOND / think) ** k for k in range(clients + 1))
    assert ended / seconds == pytest.approx((1 - idle) / MILLISECOND, rel=0.03)


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


def run(*work: tuple[float, Thread, float], env: simpy.Environment, machine: Machine) -> list[float]:
    """When each (from, thread, seconds) has ended, in ms."""
    ended = [0.0] * len(work)
    for number, (begin, thread, seconds) in enumerate(work):

        def done(number: int = number) -> None:
            ended[number] = 1000 * env.now

        def start(_: simpy.Event, thread: Thread = thread, seconds: float = seconds, done: Any = done) -> None:
            thread.run(lambda: seconds, done)

        env.timeout(begin).callbacks.append(start)
    env.run()
    assert machine.busy == pytest.approx(sum(seconds for _, _, seconds in work))
    return ended


@pytest.mark.parametrize(("wakes", "ends"), [(0.001, 4.2), (0.002, 2.2)])
def test_a_thread_that_computes_keeps_its_core_for_a_slice(wakes: float, ends: float) -> None:
    """From one that wakes before that until the next tick; after it, it makes room at once and goes on later."""
    env = simpy.Environment()
    machine = Machine(env, 1)
    compute, loop = Thread(machine), Thread(machine, light=True)
    assert run((0.0, compute, 0.01), (wakes, loop, 0.0002), env=env, machine=machine) == pytest.approx([10.2, ends])


def test_a_thread_waits_for_the_core_that_it_had() -> None:
    """Though another falls idle sooner: for so short a time a kernel moves nothing."""
    env = simpy.Environment()
    machine = Machine(env, 2)
    one, other, loop = Thread(machine), Thread(machine), Thread(machine, light=True)
    work = ((0.0, one, 0.003), (0.0, other, 0.001), (0.0005, loop, 0.0001))
    assert run(*work, env=env, machine=machine) == pytest.approx([3, 1, 3.1])


def test_a_core_that_is_idle_at_a_tick_takes_over() -> None:
    env = simpy.Environment()
    machine = Machine(env, 2)
    one, other, third = Thread(machine), Thread(machine), Thread(machine)
    work = ((0.0, one, 0.1), (0.0, other, 0.003), (0.0005, third, 0.01))
    assert run(*work, env=env, machine=machine) == pytest.approx([100, 3, 14])


@pytest.mark.parametrize(("steps", "gets"), [(3, 3.3), (20, 5.5)])
def test_a_thread_keeps_the_lock_until_another_has_waited_for_long(steps: int, gets: float) -> None:
    """Over its steps of 1.1 ms each, the other having asked at once: until they end, or five milliseconds."""
    env = simpy.Environment()
    machine, lock, got = Machine(env, 2), Lock(), list[float]()
    holder, other = Thread(machine, lock), Thread(machine, lock)
    for _ in range(steps):
        holder.run(lambda: 0.0011, locked=True)
    other.run(lambda: MILLISECOND, lambda: got.append(1000 * env.now - 1), locked=True)
    env.run()
    assert got == pytest.approx([gets], abs=0.01)
    assert env.now == pytest.approx(steps * 0.0011 + MILLISECOND)  # one after the other, on two cores


def test_what_is_refused_is_not_decoded() -> None:
    """As in the server, which looks at its queue first: only an image that there is room for is decoded on the loop."""
    times = ServiceTimes({1: 0.1}, read=MILLISECOND, decode=0.02, answer=MILLISECOND)
    first, second, third = simulate(
        iter((0.0, 0.03, 0.06)), times, Shape(2, max_batch=1, capacity=2, threads=1)
    ).requests
    assert [first.refused, second.refused, third.refused] == [False, False, True]
    assert third.seconds == pytest.approx(2 * MILLISECOND)
    assert second.seconds > 0.1


def test_a_request_after_a_pause_takes_longer() -> None:
    """By what was measured there; on the line between, and no more than after the longest."""
    cold = (Cold(0.01, 1e-4, 2e-4, 3e-4), Cold(0.1, 2e-4, 6e-4, 5e-4))
    hot, times = ServiceTimes({1: MILLISECOND}), ServiceTimes({1: MILLISECOND}, cold=cold)
    seconds = [latencies[-1] for each in (hot, times) for latencies in [simulate([0.0, 5.0], each).latencies()]]
    # The event loop has paused while the model ran, too.
    assert seconds[1] - seconds[0] == pytest.approx(2e-4 + 6e-4 + 5e-4 + times.cold_loop(1.6e-3))
    assert times.cold_engine(0.055) == pytest.approx(4e-4) and times.cold_engine(0.005) == pytest.approx(1e-4)
    assert times.wait(7.0) == 5e-4


def test_a_client_on_the_same_cores_takes_its_part() -> None:
    alone = simulate(poisson(500, 10), REAL, Shape(2), 1)
    beside = simulate(poisson(500, 10), REAL, Shape(2), 1, client=Client(4e-4, 4e-4))
    assert mean_ms(beside) > mean_ms(alone) + 0.7
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
