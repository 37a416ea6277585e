"""A replica in virtual time: event loop, engine threads, and between them the scheduler that the server has."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import simpy

from server.engines.scheduling import Batch, Job, Lane, Scheduler
from server.errors import QueueFull

from .machine import Lock, Machine, Thread
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
        threads: `AWNET_THREADS`, of each process; 0: as many as it has cores.
    """

    cores: int = 2
    workers: int = 1
    max_batch: int = 8
    capacity: int = 256
    delay: float = 0.001
    threads: int = 0


class Request:
    """One request of one image. It ends once: answered, or refused because the queue is full.

    Attributes:
        queue, inference: seconds, as the server's `Server-Timing` has them.
        wait: seconds that it spends on no core and in no line.
    """

    __slots__ = ("due", "ended", "inference", "queue", "refused", "wait")

    def __init__(self, due: float) -> None:
        self.due = due
        self.ended: float | None = None
        self.refused = False
        self.queue = self.inference = self.wait = 0.0

    @property
    def seconds(self) -> float:
        """From when it was due; infinite until it has ended."""
        return math.inf if self.ended is None else self.ended - self.due


Ended = Callable[[Request], None]


class _Asked(Job):
    __slots__ = ("decoded", "ended", "request")

    def __init__(self, lane: Lane[_Asked], request: Request, ended: Ended, decoded: bool) -> None:
        super().__init__(lane, 1)
        self.request = request
        self.ended = ended
        self.decoded = decoded


class Process:
    """One server process on a machine: an event loop and threads of the engine, which share an interpreter.

    Attributes:
        in_flight: requests that it has and that have not ended.
        images, batches: that it ran.
    """

    def __init__(
        self, env: simpy.Environment, machine: Machine, times: ServiceTimes, shape: Shape, rng: random.Random
    ) -> None:
        self._env = env
        self._times = times
        self._rng = rng
        lock = Lock()
        self._loop = Thread(machine, lock, light=True, cold=times.cold_loop)
        workers = shape.threads or max(1, shape.cores // shape.workers)
        self._idle = [Thread(machine, lock, cold=self._cold) for _ in range(workers)]
        self._slept = self._ran_at = env.now  # when the last request and the last execution ended
        self.capacity = max(1, shape.capacity // shape.workers)
        self._scheduler: Scheduler[_Asked] = Scheduler(
            workers=workers, max_batch=shape.max_batch, capacity=self.capacity, delay=shape.delay
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
        request.wait = self._times.wait(0.0 if self.in_flight else self._env.now - self._slept)
        self.in_flight += 1
        decoded: list[bool] = []

        def read() -> float:
            decoded.append(0 < self._scheduler.held < self.capacity)  # a full queue refuses before anything is decoded
            return self._times.read + self._times.decode * decoded[0]

        self._loop.run(read, lambda: self._enter(_Asked(self._lane, request, ended, decoded[0])), locked=True)

    def _enter(self, job: _Asked) -> None:
        try:
            self._scheduler.add(job, self._env.now)
        except QueueFull:
            job.request.refused = True
            self._tell(job)
        else:
            self._work()

    def _work(self) -> None:
        """Idle threads ask what there is to do, the last that rested first."""
        while self._idle and self._begin(self._idle[-1]):
            self._idle.pop()

    def _begin(self, thread: Thread) -> bool:
        """Whether there is something to do for it now."""
        work = self._scheduler.take(self._env.now)
        if isinstance(work, Batch):
            self._run(work, thread)
            return True
        if work is not None:
            pause = self._env.timeout(max(0.0, work - self._env.now))
            pause.callbacks.append(lambda _: self._work())
        return False

    def _cold(self, _pause: float) -> float:
        """An execution takes longer where none was lately, on whichever thread."""
        return self._times.cold_engine(self._env.now - self._ran_at)

    def _run(self, batch: Batch[_Asked], thread: Thread) -> None:
        times, size = self._times, len(batch.parts)
        decode = times.decode * sum(not job.decoded for job, _ in batch.parts)
        python = min(times.python, times.execution(1)) / 2
        seconds = (times.execution(size) - 2 * python) * self._rng.choice(times.spread)
        started: list[float] = []

        def model() -> float:
            started.append(self._env.now)
            return seconds

        def results() -> float:
            for job, _ in batch.parts:
                job.request.inference = self._env.now - started[0]
            return python

        thread.run(lambda: decode + python, locked=True)
        thread.run(model)
        thread.run(results, lambda: self._ran(batch, thread), locked=True)

    def _ran(self, batch: Batch[_Asked], thread: Thread) -> None:
        size = len(batch.parts)
        self._ran_at = self._env.now
        self.images += size
        self.batches += 1
        self._scheduler.done(batch, self._env.now, [(size, batch.parts[0][0].request.inference)])
        deliver = self._times.deliver
        for job, _ in batch.parts:
            self._tell(job, deliver)
            deliver = 0.0
        if not self._begin(thread):
            self._idle.append(thread)

    def _tell(self, job: _Asked, before: float = 0.0) -> None:
        """Answer it on the event loop, after so many seconds of other work there."""
        request = job.request

        def answer() -> float:
            request.queue = self._env.now - job.arrived - request.inference
            return before + self._times.answer

        def answered() -> None:
            self.in_flight -= 1
            self._slept = self._env.now
            request.ended = self._env.now + request.wait
            job.ended(request)

        self._loop.run(answer, answered, locked=True)


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
