"""Replicas behind a balancer: which of them gets a request, and what came of a load."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import simpy

from .balancers import Balancer
from .machine import Machine, Thread
from .replica import Replica, Request, Shape
from .times import ServiceTimes

Choose = Callable[[Sequence[Replica]], Replica]


def balancer(kind: Balancer, rng: random.Random) -> Choose:
    """Which replica gets the next request.

    `least`: fewest requests under way, the first after the last one that was chosen (haproxy's `leastconn`).
    `two`: the emptier of two drawn at random (Mitzenmacher, "The power of two choices", 2001). `random`: what a
    Service of Kubernetes does with connections.
    """
    turn = 0

    def in_turn(fronts: Sequence[Replica]) -> Replica:
        nonlocal turn
        turn += 1
        return fronts[turn % len(fronts)]

    def least(fronts: Sequence[Replica]) -> Replica:
        nonlocal turn
        n = len(fronts)
        turn = min(((turn + 1 + step) % n for step in range(n)), key=lambda at: fronts[at].in_flight)
        return fronts[turn]

    def two(fronts: Sequence[Replica]) -> Replica:
        one, other = rng.choice(fronts), rng.choice(fronts)
        return one if one.in_flight <= other.in_flight else other

    kinds: dict[Balancer, Choose] = {"least": least, "round-robin": in_turn, "random": rng.choice, "two": two}
    return kinds[kind]


@dataclass
class Outcome:
    """What came of a load.

    Attributes:
        requests: all, in the order in which they were due.
        seconds: from the first request to the last answer.
        core_seconds: spent by all replicas.
        replica_seconds: that replicas were there, whether or not ready.
        images, batches: that ran.
        sizes: (second, replicas that were ready) at each change.
    """

    requests: list[Request] = field(default_factory=list)
    seconds: float = 0.0
    core_seconds: float = 0.0
    replica_seconds: float = 0.0
    images: int = 0
    batches: int = 0
    sizes: list[tuple[float, int]] = field(default_factory=list)

    @property
    def refused(self) -> int:
        """Requests that found the queue full."""
        return sum(request.refused for request in self.requests)

    def answered(self, since: float = 0.0, until: float = math.inf) -> list[Request]:
        """Requests that were due in that time and have an answer."""
        return [r for r in self.requests if not r.refused and r.ended is not None and since <= r.due < until]

    def latencies(self, since: float = 0.0, until: float = math.inf) -> list[float]:
        """Seconds from due to answered, ascending, of the same."""
        return sorted(request.seconds for request in self.answered(since, until))


class Fleet:
    """Replicas that come and go.

    Args:
        start: how many there are at the beginning, ready.
        machine: on which all of them run; None: each has one of its own.
    """

    def __init__(
        self,
        env: simpy.Environment,
        times: ServiceTimes,
        shape: Shape,
        start: int,
        rng: random.Random,
        machine: Machine | None = None,
    ) -> None:
        self._env = env
        self._make = partial(Replica, env, times, shape, rng, machine)
        self.ready: list[Replica] = []
        self.starting = 0
        self._gone: list[Replica] = []
        self._changed = env.now
        self._there_seconds = 0.0
        self.sizes: list[tuple[float, int]] = []
        for _ in range(start):
            self._join()

    @property
    def size(self) -> int:
        """Replicas that are paid for: ready ones and those that start."""
        return len(self.ready) + self.starting

    def add(self, count: int, seconds: float) -> None:
        """So many more, ready after so many seconds."""
        self._count()
        self.starting += count
        pause = self._env.timeout(seconds)

        def up(_: simpy.Event) -> None:
            self._count()
            self.starting -= count
            for _number in range(count):
                self._join()

        pause.callbacks.append(up)

    def remove(self, count: int) -> None:
        """The youngest get no further request, and answer what they have."""
        self._count()
        for _ in range(min(count, len(self.ready) - 1)):
            self._gone.append(self.ready.pop())
        self.sizes.append((self._env.now, len(self.ready)))

    def ever(self) -> list[Replica]:
        """All, with those that are gone."""
        return self.ready + self._gone

    def there_seconds(self) -> float:
        """Replicas times the seconds that they were there."""
        self._count()
        return self._there_seconds

    def _count(self) -> None:
        self._there_seconds += self.size * (self._env.now - self._changed)
        self._changed = self._env.now

    def _join(self) -> None:
        self.ready.append(self._make())
        self.sizes.append((self._env.now, len(self.ready)))


@dataclass(frozen=True, slots=True)
class Client:
    """One that shares the cores of the replicas: seconds of its one thread a request, before and after."""

    send: float
    receive: float


def simulate(
    arrivals: Iterable[float],
    times: ServiceTimes,
    shape: Shape = Shape(),  # noqa: B008, frozen
    replicas: int = 1,
    balance: Balancer = "least",
    seed: int = 0,
    *,
    control: Callable[[simpy.Environment, Fleet], object] | None = None,
    client: Client | None = None,
) -> Outcome:
    """Serve a load; the same arguments give the same outcome.

    Args:
        arrivals: when requests are due, seconds, ascending.
        control: called before the first request, starts what changes the fleet meanwhile.
        client: all replicas then share one machine with it, of the cores that `shape` says.
    """
    env, rng = simpy.Environment(), random.Random(seed)  # noqa: S311, a load and no secret
    machine = Machine(env, shape.cores) if client else None
    fleet = Fleet(env, times, shape, replicas, rng, machine)
    choose = balancer(balance, rng)
    asking = Thread(machine, light=True) if machine else None
    outcome, finished = Outcome(sizes=fleet.sizes), env.event()
    open_requests = 1  # with the arrivals themselves, until there are no more

    def ended(request: Request) -> None:
        if client and asking:
            asking.run(lambda: client.receive, lambda: close(request))
        else:
            close(request)

    def close(request: Request | None = None) -> None:
        nonlocal open_requests
        if request and client:
            request.ended = env.now + request.wait
        open_requests -= 1
        if not open_requests:
            finished.succeed()

    def offer(request: Request) -> None:
        choose(fleet.ready).offer(request, ended)

    def come() -> Generator[simpy.Event, Any, None]:
        nonlocal open_requests
        for due in arrivals:
            if due > env.now:
                yield env.timeout(due - env.now)
            request = Request(due)
            outcome.requests.append(request)
            open_requests += 1
            if client and asking:
                asking.run(lambda: client.send, partial(offer, request))
            else:
                offer(request)
        close()

    env.process(come())
    if control:
        control(env, fleet)
    env.run(until=finished)
    outcome.seconds = env.now
    outcome.replica_seconds = fleet.there_seconds()
    machines = {front.machine for front in fleet.ever()}
    outcome.core_seconds = sum(machine.spent() for machine in machines)
    processes = [process for front in fleet.ever() for process in front.processes]
    outcome.images = sum(process.images for process in processes)
    outcome.batches = sum(process.batches for process in processes)
    return outcome
