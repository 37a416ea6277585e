"""A replica in virtual time: event loop, engine threads, and between them the scheduler that the server has."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import simpy

from server.engines.scheduling import Batch, Job, Lane, Scheduler
from server.errors import QueueFull

from .machine import Machine, Thread
from .times import ServiceTimes


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a replica: settings of the server that matter here, with their defaults.

    Deadlines are left out: the queue is refused long before `AWNET_TIMEOUT_SECONDS` have passed.

    Attributes:
        cores: that it has for itself.
        workers: processes (`--workers`), among which cores and room are shared out.
        max_batch, capacity: `AWNET_MAX_BATCH`, `AWNET_QUEUE_CAPACITY`.
        delay: `AWNET_BATCH_DELAY_MS`, seconds.
    """

    cores: int = 2
    workers: int = 1
    max_batch: int = 8
    capacity: int = 256
    delay: float = 0.001


class Request:
    """One request of one image. It ends once: answered, or refused because the queue is full."""

    __slots__ = ("due", "ended", "refused")

    def __init__(self, due: float) -> None:
        self.due = due
        self.ended: float | None = None
        self.refused = False


Ended = Callable[[Request], None]


class _Asked(Job):
    __slots__ = ("decoded", "ended", "request")

    def __init__(self, lane: Lane[_Asked], request: Request, ended: Ended, decoded: bool) -> None:
        super().__init__(lane, 1)
        self.request = request
        self.ended = ended
        self.decoded = decoded


class Process:
    """One server process on a machine.

    Attributes:
        in_flight: requests that it has and that have not ended.
        images, batches: that it ran.
    """

    def __init__(
        self, env: simpy.Environment, machine: Machine, times: ServiceTimes, shape: Shape, rng: random.Random
    ) -> None:
        self._env = env
        self._machine = machine
        self._times = times
        self._rng = rng
        self._loop = Thread(machine)
        self._idle = self._threads = max(1, shape.cores // shape.workers)
        self.capacity = max(1, shape.capacity // shape.workers)
        self._scheduler: Scheduler[_Asked] = Scheduler(
            workers=self._threads, max_batch=shape.max_batch, capacity=self.capacity, delay=shape.delay
        )
        self._lane: Lane[_Asked] = Lane()
        self._scheduler.open(self._lane)
        for size in self._scheduler.buckets:  # what a server learns before it is ready
            self._lane.learn(size, times.execution(size))
        self.in_flight = self.images = self.batches = 0

    @property
    def queue(self) -> int:
        """As `awnet_queue_images`."""
        return self._scheduler.held

    def offer(self, request: Request, ended: Ended) -> None:
        """A request has come; `ended` is called with it once."""
        self.in_flight += 1
        decoded: list[bool] = []

        def read() -> float:
            decoded.append(self._scheduler.held > 0)
            return self._times.read + self._times.decode * decoded[0]

        self._loop.run(read, lambda: self._enter(request, ended, decoded[0]))

    def _enter(self, request: Request, ended: Ended, decoded: bool) -> None:
        try:
            self._scheduler.add(_Asked(self._lane, request, ended, decoded), self._env.now)
        except QueueFull:
            request.refused = True
            self._tell(request, ended)
        else:
            self._work()

    def _work(self) -> None:
        """Idle threads ask what there is to do."""
        while self._idle:
            work = self._scheduler.take(self._env.now)
            if not isinstance(work, Batch):
                if work is not None:
                    pause = self._env.timeout(max(0.0, work - self._env.now))
                    pause.callbacks.append(lambda _: self._work())
                return
            self._idle -= 1
            size, times = len(work.parts), self._times
            run = times.execution(size) * self._rng.choice(times.spread)
            decode = times.decode * sum(not job.decoded for job, _ in work.parts)
            self._machine.run(decode + run, partial(self._ran, work, self._env.now + decode))

    def _ran(self, batch: Batch[_Asked], started: float) -> None:
        size = len(batch.parts)
        self.images += size
        self.batches += 1
        self._idle += 1
        self._scheduler.done(batch, self._env.now, [(size, self._env.now - started)])
        deliver = self._times.deliver
        for job, _ in batch.parts:
            self._tell(job.request, job.ended, deliver)
            deliver = 0.0
        self._work()

    def _tell(self, request: Request, ended: Ended, before: float = 0.0) -> None:
        """Answer it on the event loop, after so many seconds of other work there."""

        def told() -> None:
            self.in_flight -= 1
            request.ended = self._env.now + self._times.fixed
            ended(request)

        self._loop.run(lambda: before + self._times.answer, told)


class Replica:
    """A machine with its processes: a server, a pod."""

    def __init__(
        self,
        env: simpy.Environment,
        times: ServiceTimes,
        shape: Shape,
        rng: random.Random,
        machine: Machine | None = None,
    ) -> None:
        self.machine = machine or Machine(env, shape.cores)
        self.processes = [Process(env, self.machine, times, shape, rng) for _ in range(shape.workers)]

    def offer(self, request: Request, ended: Ended) -> None:
        """Workers leave a connection to whoever of them has fewer."""
        min(self.processes, key=_in_flight).offer(request, ended)

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return sum(map(_in_flight, self.processes))

    @property
    def queue(self) -> int:
        """As `awnet_queue_images`."""
        return sum(process.queue for process in self.processes)

    @property
    def capacity(self) -> int:
        """As `awnet_queue_capacity_images`."""
        return sum(process.capacity for process in self.processes)


def _in_flight(process: Process) -> int:
    return process.in_flight
