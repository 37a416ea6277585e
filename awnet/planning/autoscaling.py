"""The autoscalers of the Helm chart in virtual time: on the queue, as KEDA does it there, and on CPU."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

import simpy

from .fleet import Fleet
from .replica import Replica

TOLERANCE = 0.1  # of Kubernetes: a ratio this close to 1 changes nothing


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """By the defaults of `deploy/kubernetes/values.yaml`, and of Kubernetes for what is not there.

    Attributes:
        on: `queue`: the images in all queues and the fullest queue's share. `cpu`: mean use of the cores.
        queue_images, queue_share: what a replica may hold, as KEDA compares it; `cpu_share`: of its cores.
        interval: seconds between two decisions; what they rest on is as old as the last scrape, which is as often.
        window: seconds over which CPU use is averaged.
        start: seconds until a new replica takes requests.
        grow: replicas grow at most by this share of themselves in `up` seconds.
        down: a quarter may go in so many seconds, by the most that was asked for in the last `patience` seconds.
    """

    on: Literal["queue", "cpu"]
    minimum: int = 2
    maximum: int = 10
    queue_images: float = 32.0
    queue_share: float = 0.25
    cpu_share: float = 0.7
    interval: float = 15.0
    window: float = 15.0
    start: float = 4.0
    grow: float = 1.0
    up: float = 30.0
    down: float = 60.0
    patience: float = 300.0

    def wanted(self, replicas: int, queues: list[int], shares: list[float], cpu: float) -> int:
        """Replicas for these readings, before any limit.

        Args:
            replicas: how many there are.
            queues, shares: of each that is ready: images, and their share of its capacity.
            cpu: mean use of their cores, 0 to 1.
        """
        if self.on == "cpu":
            return _scaled(replicas, cpu / self.cpu_share)
        total = _scaled(replicas, sum(queues) / (self.queue_images * replicas))
        return max(total, _scaled(replicas, max(shares, default=0.0) / self.queue_share))

    def control(self, env: simpy.Environment, fleet: Fleet) -> None:
        """Watch over `fleet` from now on."""
        env.process(self._watch(env, fleet))

    def _watch(self, env: simpy.Environment, fleet: Fleet) -> Generator[simpy.Event, Any, None]:
        asked: deque[tuple[float, int]] = deque()
        sizes: deque[tuple[float, int]] = deque([(env.now, fleet.size)])
        spent: dict[Replica, float] = {}
        while True:
            # The scrape that a decision rests on, and the window before it.
            lead = min(self.window, self.interval)
            yield env.timeout(self.interval - lead)
            spent = {front: front.machine.spent() for front in fleet.ready}
            yield env.timeout(lead)
            used = [
                (front.machine.spent() - before) / (lead * front.machine.cores)
                for front, before in spent.items()
                if front in fleet.ready
            ]
            wanted = self.wanted(
                fleet.size,
                [front.queue for front in fleet.ready],
                [front.queue / front.capacity for front in fleet.ready],
                sum(used) / len(used) if used else 0.0,
            )
            wanted = max(self.minimum, min(self.maximum, wanted))
            asked.append((env.now, wanted))
            while asked[0][0] <= env.now - self.patience:
                asked.popleft()
            self._change(env, fleet, wanted, max(count for _, count in asked), sizes)

    def _change(
        self, env: simpy.Environment, fleet: Fleet, wanted: int, lately: int, sizes: deque[tuple[float, int]]
    ) -> None:
        """Go towards `wanted`, or down to the most that was wanted `lately`, within the limits a time."""
        size = fleet.size
        if wanted > size:
            least = min([count for when, count in sizes if when > env.now - self.up], default=size)
            fleet.add(max(0, min(wanted, max(math.ceil((1 + self.grow) * min(least, size)), size)) - size), self.start)
        elif lately < size:
            most = max([count for when, count in sizes if when > env.now - self.down], default=size)
            fleet.remove(size - max(lately, min(size, math.floor(most * 0.75))))
        if fleet.size != size:
            sizes.append((env.now, size))
            sizes.append((env.now, fleet.size))


def _scaled(replicas: int, ratio: float) -> int:
    """As Kubernetes does it: nothing changes where the ratio is nearly 1."""
    return replicas if abs(ratio - 1) <= TOLERANCE else math.ceil(replicas * ratio)
