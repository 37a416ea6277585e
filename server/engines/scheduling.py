"""Which images run next, how many together, and when: the policy of `batching`, without threads and without a clock.

`Scheduler` holds a bounded queue of two priorities. Its user passes the time with every call and
serialises the calls (a lock, or a simulation's one thread); the tests run it through hours of virtual time.

The rules:

* *Line.* First come, first served. Low-priority images run when no normal one waits; one that has waited `patience`
  is put at the end of the normal line, so that it is never passed for ever.
* *Batch.* Images of one lane, their number always a bucket: 1, 2, 4, ... and `max_batch`. A worker takes the largest
  bucket within its fair share of what waits: the share among all workers, so that those that run find as much when they
  end; or a larger one, up to the share among the idle ones, where an image of it costs a fifth less. One batch in
  256 is that large whatever it costs, or a slow execution would count for ever.
* *Alone.* One image is told that it is alone where nothing else waits or runs and batches have mostly ended so lately:
  among several clients the next one comes before it is done, and the cores that it took would be missed.
* *Delay.* None while a second worker is idle or nothing else runs. Otherwise the last idle worker may wait for the
  next bucket to fill, if by the rate of arrivals it will have filled before the wait costs more than running together
  saves, and never beyond `delay` after the oldest image came. Where such waits end in vain (the next to come are those
  that now run: their clients send again only when answered), they are left off for a while.
* *Room.* At most `capacity` images wait or run, and low ones are let in only up to half of it. Images that have waited
  in a line of their own to be decoded are let in: their place was counted there, and their work is done.
* *Deadlines.* An image is not started past its deadline, nor when it would be late and another waits; a request that
  the line ahead would make late is refused on arrival.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from ..errors import DeadlineExceeded, QueueFull

PATIENCE_SECONDS = 1.0
NORMAL, LOW = 0, 1
_GONE = -1  # the level of a job of which nothing waits
_NEW = 0.2  # weight of a new sample in a running mean
_MOSTLY = 0.8
_CHEAPER = 0.8  # an image of a batch beyond the share among all workers costs at most so much of one within it
_TRIED = 256  # one batch in so many is as large as may be
_RETRY_GAIN = 0.004  # what success gains by each wait that was left off: one in 25 is tried again


J = TypeVar("J", bound="Job")


class Lane(Generic[J]):
    """What waits for one mode of a model, and what was learnt of it. Images of two lanes never share a batch."""

    __slots__ = ("awaited", "cost", "gap", "last", "queues", "running", "success", "waiting")

    def __init__(self) -> None:
        self.queues: tuple[OrderedDict[J, None], OrderedDict[J, None]] = (OrderedDict(), OrderedDict())
        self.waiting = [0, 0]  # images by level
        self.running = 0  # images
        self.cost: dict[int, float] = {}  # seconds of one execution, by its size
        self.gap = 0.0  # mean seconds between two images that came
        self.last = float("-inf")  # when the last one came
        self.awaited = 0  # images for which a worker waits
        self.success = 1.0  # mean share of such waits that were not in vain

    def learn(self, size: int, seconds: float) -> None:
        """One execution of `size` images took `seconds`."""
        known = self.cost.get(size)
        self.cost[size] = seconds if known is None else known + _NEW * (seconds - known)


class Job:
    """One request of `count` images. The attributes below the line belong to the scheduler.

    Args:
        lane: which model it is for.
        count: images, at least 1; they are taken in order, not always into the same batch.
        deadline: in the clock of `now`; infinite for none.
        low: low priority.
        admitted: let in whatever waits.
    """

    __slots__ = ("admitted", "arrived", "count", "deadline", "lane", "level", "low", "place", "taken")

    def __init__(
        self,
        lane: Lane[Any],
        count: int,
        deadline: float = float("inf"),
        low: bool = False,
        admitted: bool = False,
    ) -> None:
        self.lane = lane
        self.count = count
        self.deadline = deadline
        self.low = low
        self.admitted = admitted
        # ---
        self.arrived = 0.0
        self.place = 0.0  # in line: when it came, or when it joined the normal line
        self.level = _GONE
        self.taken = 0


class Batch(Generic[J]):
    """Images to be run together: `parts` are (job, index of the image in it), all of one lane.

    `alone` says that nothing else runs, waits or is likely to come, so that this one image may have all cores.
    """

    __slots__ = ("alone", "lane", "parts", "started")

    def __init__(self, lane: Lane[J], parts: list[tuple[J, int]], alone: bool, started: float) -> None:
        self.lane = lane
        self.parts = parts
        self.alone = alone
        self.started = started


class Scheduler(Generic[J]):
    """The queue of all lanes.

    Args:
        workers: batches that may run at the same time.
        max_batch: largest batch.
        capacity: images that may wait or run. A request larger than that is let in when nothing else is there, or it
            could never be answered.
        delay: longest wait for a fuller batch, seconds.
        patience: seconds after which a low image counts as a normal one that has just come.
    """

    def __init__(
        self, *, workers: int, max_batch: int, capacity: int, delay: float = 0.0, patience: float = PATIENCE_SECONDS
    ) -> None:
        self.buckets = buckets(max_batch)
        self._workers = workers
        self._max_batch = max_batch
        self._capacity = capacity
        self._delay = delay
        self._patience = patience
        self._lanes: list[Lane[J]] = []
        self._waiting = [0, 0]  # images by level
        self._running = 0  # images
        self._busy = 0  # batches
        self._batches = 0  # that were taken
        self._pace = 0.0  # mean seconds that a worker spends on an image
        self._solitude = 1.0  # mean share of batches at whose end nothing was waiting or running
        self._floor = [0] + [max(b for b in self.buckets if b <= n) for n in range(1, max_batch + 1)]

    @property
    def held(self) -> int:
        """Images that wait or run."""
        return self._waiting[NORMAL] + self._waiting[LOW] + self._running

    def open(self, lane: Lane[J]) -> None:
        """Take jobs for `lane` from now on."""
        self._lanes.append(lane)

    def shut(self, lane: Lane[J]) -> None:
        """Forget `lane`, of which nothing waits any more."""
        self._lanes.remove(lane)

    def add(self, job: J, now: float) -> None:
        """Put `job` in line.

        Raises:
            QueueFull: no room for all its images.
            DeadlineExceeded: the deadline has passed, or would before the job's turn.
        """
        self._promote(now)
        held, count, lane = self.held, job.count, job.lane
        if held and not job.admitted and held + count > (self._capacity // 2 if job.low else self._capacity):
            raise QueueFull(f"{held} images are waiting; try again shortly")
        ahead = self._waiting[NORMAL] + (self._waiting[LOW] if job.low else 0)
        # Only while others wait: their executions keep `pace` true, so that one slow spell cannot shut the door.
        if job.deadline <= now or (ahead and now + ahead * self._pace / self._workers > job.deadline):
            raise DeadlineExceeded("the deadline would pass before this request's turn")
        gap = min((now - lane.last) / count, 8 * self._delay)  # one long pause says little about what comes next
        lane.gap += _NEW * (gap - lane.gap)
        lane.last = job.arrived = now
        job.place = now + self._patience if job.low else now
        self._enter(job, LOW if job.low else NORMAL)

    def drop(self, job: J) -> None:
        """Take what still waits of `job` out of the line; what runs stays counted until it is done."""
        if job.level != _GONE:
            self._leave(job)

    def take(self, now: float) -> Batch[J] | float | None:
        """What an idle worker is to do: run this batch, ask again at this time or at the next arrival, or rest."""
        self._promote(now)
        while True:
            level = NORMAL if self._waiting[NORMAL] else LOW
            lane = self._first(level)
            if lane is None:
                return None
            waits = min(lane.waiting[level], self._max_batch)
            idle = self._workers - self._busy  # with the one that asks
            size = self._size(lane, waits, self._waiting[level], max(1, idle))
            late = self._late(lane, level, size, now)
            if late is None:
                break
            self._leave(late)
        everything = self._waiting[NORMAL] + self._waiting[LOW]
        if self._delay and idle == 1 and self._busy and lane.waiting[level] == everything:
            until = self._worth_waiting(lane, level, now)
            if until > now:
                return until
        if lane.awaited:
            lane.success += _NEW * ((waits >= lane.awaited) - lane.success)
            lane.awaited = 0
        alone = self._busy == 0 and everything == 1 and self._solitude > _MOSTLY
        parts: list[tuple[J, int]] = []
        line = lane.queues[level]
        while len(parts) < size:
            job = next(iter(line))
            end = min(job.count, job.taken + size - len(parts))
            parts += [(job, index) for index in range(job.taken, end)]
            self._count(lane, level, job.taken - end)
            job.taken = end
            if end == job.count:
                del line[job]
                job.level = _GONE
        self._busy += 1
        self._batches += 1
        self._running += size
        lane.running += size
        return Batch(lane, parts, alone, now)

    def done(self, batch: Batch[J], now: float, executions: Iterable[tuple[int, float]] = ()) -> None:
        """`batch` has ended, well or not; `executions` are (size, seconds) of the model's runs in it."""
        size = len(batch.parts)
        self._busy -= 1
        self._running -= size
        batch.lane.running -= size
        self._solitude += _NEW * ((self.held == 0) - self._solitude)
        for images, seconds in executions:
            batch.lane.learn(images, seconds)
        pace = (now - batch.started) / size
        self._pace = pace if not self._pace else self._pace + _NEW * (pace - self._pace)

    def _first(self, level: int) -> Lane[J] | None:
        """The lane of the one who is next in line."""
        if not self._waiting[level]:
            return None
        if len(self._lanes) == 1:
            return self._lanes[0]
        return min(
            (lane for lane in self._lanes if lane.queues[level]), key=lambda lane: next(iter(lane.queues[level])).place
        )

    def _late(self, lane: Lane[J], level: int, size: int, now: float) -> J | None:
        """A job among the first `size` images that is not worth starting."""
        end = now + lane.cost.get(size, 0.0)
        for job in lane.queues[level]:
            rest = job.count - job.taken
            # By estimate only where another waits for the place: the last one runs and so keeps the estimate true.
            if job.deadline <= now or (job.deadline < end and self.held - self._running > rest):
                return job
            size -= rest
            if size <= 0:
                return None
        return None

    def _size(self, lane: Lane[J], waits: int, line: int, idle: int) -> int:
        """Of the next batch.

        Args:
            waits: images of the lane, at most `max_batch`.
            line: images of all lanes.
            idle: workers, with the one that asks.
        """
        least, most = (self._floor[min(waits, -(-line // workers))] for workers in (self._workers, idle))
        if most not in lane.cost or self._batches % _TRIED == 0:
            return most
        enough = lane.cost[most] / most / _CHEAPER
        for size in self.buckets:
            if least <= size < most and size in lane.cost and lane.cost[size] / size < enough:
                return size
        return most

    def _worth_waiting(self, lane: Lane[J], level: int, now: float) -> float:
        """Until when a fuller batch is worth waiting for; `now` or earlier if it is not."""
        waits = lane.waiting[level]
        target = next((bucket for bucket in self.buckets if bucket > waits), None)
        if target is None or self._size(lane, target, target, 1) < target:  # it would not be run together
            return now
        try:
            saved = self._price(lane, waits) + self._price(lane, target - waits) - lane.cost[target]
        except KeyError:  # never run in that size: nothing is known to be saved
            return now
        until = next(iter(lane.queues[level])).arrived + min(self._delay, saved)
        # When nothing has come for longer than usual, the usual no longer holds.
        gap = max(lane.gap, now - lane.last)
        if now + (target - waits) * gap > until:
            return now
        if lane.success < 0.5:
            lane.success += _RETRY_GAIN
            return now
        lane.awaited = target
        return until

    def _price(self, lane: Lane[J], images: int) -> float:
        """Seconds to run so many images in buckets, as they would be without waiting."""
        return sum(lane.cost[size] for size in self.pieces(images))

    def pieces(self, images: int) -> list[int]:
        """`images` as a sum of buckets, the largest first."""
        sizes = []
        while images:
            sizes.append(self._floor[min(images, self._max_batch)])
            images -= sizes[-1]
        return sizes

    def _promote(self, now: float) -> None:
        """Low jobs whose patience is over join the normal line, before anything else that happens now."""
        if not self._waiting[LOW]:
            return
        for lane in self._lanes:
            line = lane.queues[LOW]
            while line and (job := next(iter(line))).place <= now:
                self._leave(job)
                self._enter(job, NORMAL)

    def _enter(self, job: J, level: int) -> None:
        job.level = level
        job.lane.queues[level][job] = None
        self._count(job.lane, level, job.count - job.taken)

    def _leave(self, job: J) -> None:
        del job.lane.queues[job.level][job]
        self._count(job.lane, job.level, job.taken - job.count)
        job.level = _GONE

    def _count(self, lane: Lane[J], level: int, images: int) -> None:
        self._waiting[level] += images
        lane.waiting[level] += images


def buckets(max_batch: int) -> tuple[int, ...]:
    """The sizes in which a batch may run: powers of two below `max_batch`, and `max_batch`."""
    sizes = []
    size = 1
    while size < max_batch:
        sizes.append(size)
        size *= 2
    return (*sizes, max_batch)
