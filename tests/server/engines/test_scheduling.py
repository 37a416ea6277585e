"""The scheduler in virtual time: an injected clock, simulated workers, and models that are slow or fail.

Nothing here waits or starts a thread; every run with the same seed is the same run.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from benchmarks.speed.batching import EVEN, served
from server.engines.scheduling import Batch, Job, Lane, Scheduler, buckets
from server.errors import DeadlineExceeded, QueueFull

SEEDS = range(40)
Cost = Callable[[int, random.Random], float]


def steady(size: int, rng: random.Random) -> float:
    """Milliseconds of an ONNX model on a core: a batch saves a quarter."""
    return 0.0005 + 0.0015 * size


def wild(size: int, rng: random.Random) -> float:
    """Mostly quick, at times a hundred times slower."""
    return steady(size, rng) * (100 if rng.random() < 0.03 else rng.uniform(0.5, 2))


class Request(Job):
    """A job that remembers what became of it."""

    def __init__(self, lane: Lane[Request], count: int, deadline: float = math.inf, low: bool = False) -> None:
        super().__init__(lane, count, deadline, low)
        self.starts: list[float] = []  # by image
        self.finished = 0
        self.fate: str | None = None
        self.ended = math.nan

    def end(self, fate: str, now: float) -> None:
        assert self.fate is None, f"{fate} after {self.fate}"
        self.fate, self.ended = fate, now


@dataclass
class World:
    """Workers, clients and a clock around one scheduler; the rules are checked at every step."""

    scheduler: Scheduler[Request]
    workers: int
    capacity: int
    cost: Cost = steady
    failing: float = 0.0  # share of executions
    seed: int = 0
    patience: float = 1.0
    delay: float = 0.0
    now: float = 0.0
    requests: list[Request] = field(default_factory=list)
    refused: list[Request] = field(default_factory=list)
    batches: list[Batch[Request]] = field(default_factory=list)
    on_end: Callable[[Request], None] = lambda request: None

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._idle = self.workers
        self._running: dict[Batch[Request], float] = {}

    def at(self, time: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._number), what))

    def run(self, until: float = math.inf) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
            assert self.scheduler.held >= 0

    def submit(self, request: Request) -> bool:
        """Send a request now; False if it is refused."""
        before = self.scheduler.held
        try:
            self.scheduler.add(request, self.now)
        except (QueueFull, DeadlineExceeded) as error:
            assert self.scheduler.held == before
            request.fate = error.slug
            self.refused.append(request)
            return False
        assert self.scheduler.held == before + request.count
        assert before == 0 or self.scheduler.held <= self.capacity, "more was let in than there is room for"
        self.requests.append(request)
        if request.deadline < math.inf:
            self.at(request.deadline, lambda: self._give_up(request, "late"))
        self.wake()
        return True

    def cancel(self, request: Request) -> None:
        self._give_up(request, "cancelled")

    def _give_up(self, request: Request, fate: str) -> None:
        if request.fate is None:
            before, waiting = self.scheduler.held, request.count - request.taken if request.level >= 0 else 0
            self.scheduler.drop(request)
            assert self.scheduler.held == before - waiting, "what waited is freed at once, what runs is not"
            request.end(fate, self.now)
            self.on_end(request)
            self.wake()

    def wake(self) -> None:
        """Every idle worker asks."""
        while self._idle:
            waiting = [r for r in self.requests if r.level >= 0]
            work = self.scheduler.take(self.now)
            if not isinstance(work, Batch):
                if work is not None:
                    assert self.now < work <= self.now + self.delay, "a worker waits longer than the delay"
                    assert self._running, "a worker waits while nothing else runs"
                    self.at(work, self.wake)
                else:
                    assert not [r for r in waiting if r.level >= 0], "a worker is idle while an image waits"
                return
            self._idle -= 1
            self._check(work, waiting)
            self.batches.append(work)
            sizes = [len(work.parts)]
            seconds = [self.cost(size, self.rng) for size in sizes]
            fails = self.rng.random() < self.failing
            self._running[work] = self.now
            self.at(self.now + sum(seconds), lambda w=work, s=sizes, c=seconds, f=fails: self._done(w, s, c, f))

    def _check(self, batch: Batch[Request], waiting: list[Request]) -> None:
        assert len(batch.parts) in self.scheduler.buckets
        assert all(request.lane is batch.lane for request, _ in batch.parts), "two models in one batch"
        if batch.alone:
            assert len(batch.parts) == 1 and not self._running and self.scheduler.held == 1
        taken = {request for request, _ in batch.parts}
        for request, index in batch.parts:
            assert request.fate is None, "an image is run for which nobody waits"
            assert self.now < request.deadline, "an image is started past its deadline"
            assert index == len(request.starts), "an image is run twice, or out of order"
            request.starts.append(self.now)
        for request in taken:
            left = [r for r in waiting if r.fate is None and r not in taken and r.level >= 0]
            passed = [
                r for r in left if r.low == request.low and r.lane is request.lane and r.arrived < request.arrived
            ]
            assert not passed, "overtaken by a younger one of the same priority"
            if request.low and self.now < request.arrived + self.patience:
                assert all(r.low for r in left), "a low image ran while a normal one waited"

    def _done(self, batch: Batch[Request], sizes: list[int], seconds: list[float], fails: bool) -> None:
        self.scheduler.done(batch, self.now, [] if fails else zip(sizes, seconds, strict=True))
        del self._running[batch]
        self._idle += 1
        for request, _ in batch.parts:
            if request.fate is not None:
                continue
            if fails:
                self._give_up(request, "failed")
                continue
            request.finished += 1
            if request.finished == request.count:
                request.end("answered", self.now)
                self.on_end(request)
        self.wake()


def world(lanes: int = 1, **options: object) -> tuple[World, list[Lane[Request]]]:
    given = {"workers": 2, "max_batch": 8, "capacity": 64, "delay": 0.0, "patience": 1.0, **options}
    scheduler: Scheduler[Request] = Scheduler(
        **{key: given[key] for key in ("workers", "max_batch", "capacity", "delay", "patience")}  # type: ignore[arg-type]
    )
    opened = [Lane[Request]() for _ in range(lanes)]
    for lane in opened:
        scheduler.open(lane)
    return World(scheduler, **{k: v for k, v in given.items() if k != "max_batch"}), opened  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_doubled_or_overtaken_whatever_happens(seed: int) -> None:
    """Random loads, models, failures, cancellations and deadlines; the rules are those that `World` asserts.

    At the end each request had one fate, in time, and nothing is left in the queue.
    """
    rng = random.Random(seed)
    capacity = rng.choice([4, 16, 64])
    place, lanes = world(
        lanes=rng.choice([1, 1, 3]),
        workers=rng.choice([1, 2, 4]),
        max_batch=rng.choice([1, 2, 6, 8]),
        capacity=capacity,
        delay=rng.choice([0.0, 0.001, 0.01]),
        patience=rng.choice([0.02, 1.0]),
        cost=rng.choice([steady, wild]),
        failing=rng.choice([0.0, 0.05, 0.5]),
        seed=seed,
    )
    load = rng.choice([0.2, 1.0, 3.0])
    time = 0.0
    for _ in range(600):
        time += 0.0 if rng.random() < 0.3 else rng.expovariate(load * 500)

        def send(at: float = time) -> None:
            deadline = at + rng.choice([0.002, 0.02, 0.5]) if rng.random() < 0.4 else math.inf
            request = Request(rng.choice(lanes), rng.choice([1, 1, 1, 2, 3, 5, 12]), deadline, low=rng.random() < 0.3)
            if place.submit(request) and rng.random() < 0.1:
                place.at(at + rng.expovariate(100), lambda: place.cancel(request))

        place.at(time, send)
    place.run()

    assert place.scheduler.held == 0
    assert len(place.requests) + len(place.refused) == 600
    for request in place.requests:
        assert request.fate in ("answered", "failed", "late", "cancelled")
        assert request.ended <= request.deadline
        if request.fate == "answered":
            assert request.finished == len(request.starts) == request.count
    assert any(request.fate == "answered" for request in place.requests)


def test_the_same_seed_gives_the_same_run() -> None:
    """The scheduler looks at no clock but the one it is given."""

    def story() -> list[tuple[float, int]]:
        place, (lane,) = world(cost=wild, delay=0.001, seed=5)
        for n in range(200):
            place.at(n * 0.0007, lambda: place.submit(Request(lane, 1)))
        place.run()
        return [(batch.started, len(batch.parts)) for batch in place.batches]

    assert story() == story()


def test_buckets_are_powers_of_two_and_the_largest_batch() -> None:
    """So that a runtime meets few shapes, each of them warmed."""
    assert buckets(1) == (1,)
    assert buckets(6) == (1, 2, 4, 6)
    assert buckets(8) == (1, 2, 4, 8)
    scheduler: Scheduler[Request] = Scheduler(workers=1, max_batch=6, capacity=9)
    assert [scheduler.pieces(n) for n in (0, 1, 3, 5, 6, 7, 15)] == [[], [1], [2, 1], [4, 1], [6], [6, 1], [6, 6, 2, 1]]


def test_idle_workers_get_a_fair_share() -> None:
    """Eight images and two idle workers: four each; seven: four for one, and what fits for the other."""
    for waiting, expected in [(8, [4, 4]), (7, [4, 2]), (2, [1, 1]), (16, [8, 8])]:
        place, (lane,) = world()
        place.submit(Request(lane, waiting))
        assert [len(batch.parts) for batch in place.batches] == expected


def test_only_the_one_image_there_is_has_all_cores() -> None:
    """Two that come together share them."""
    place, (lane,) = world()
    place.submit(Request(lane, 1))
    place.submit(Request(lane, 1))
    place.run()
    place.submit(Request(lane, 2))
    assert [batch.alone for batch in place.batches] == [True, False, False, False]


def test_among_several_clients_no_image_has_all_cores_and_a_lone_client_gets_them_again() -> None:
    """Even where it comes while nothing else is there: the next ones come before it is done."""
    scheduler: Scheduler[Request] = Scheduler(workers=2, max_batch=8, capacity=64)
    lane = Lane[Request]()
    scheduler.open(lane)

    def answer(now: float, neighbour: bool) -> bool:
        """One image that finds nothing else there, perhaps one that comes meanwhile: whether the first was alone."""
        scheduler.add(Request(lane, 1), now)
        first = scheduler.take(now)
        assert isinstance(first, Batch)
        if neighbour:
            scheduler.add(Request(lane, 1), now)
            second = scheduler.take(now)
            assert isinstance(second, Batch) and not second.alone
        scheduler.done(first, now, [])
        if neighbour:
            scheduler.done(second, now, [])
        return first.alone

    assert answer(0.0, neighbour=False)
    crowd = [answer(1.0, neighbour=True) for _ in range(20)]
    assert not any(crowd[4:])
    lone = [answer(2.0, neighbour=False) for _ in range(12)]
    assert not lone[0] and all(lone[8:])


@pytest.mark.parametrize("workers", [1, 3])
def test_an_idle_server_never_waits(workers: int) -> None:
    """However large the gain: an image that is alone, or finds two workers idle, starts when it comes."""
    place, (lane,) = world(workers=workers, delay=10.0)
    for size in place.scheduler.buckets:
        lane.learn(size, 1.0)  # a batch of eight costs as much as one image
    for _ in range(1 if workers == 1 else 2):
        lane.gap, lane.last = 0.001, place.now
        request = Request(lane, 1)
        place.submit(request)
        assert request.starts == [request.arrived]


def busy_world(gap: float, delay: float, saving: float) -> tuple[World, list[Request]]:
    """One of two workers is busy for long; single images come every `gap` seconds. Returns what comes."""
    place, (lane,) = world(delay=delay)
    place.cost = lambda size, rng: 0.02
    for size in place.scheduler.buckets:
        lane.learn(size, 0.001 * size - saving * (size - 1))
    place.submit(Request(lane, 1))
    lane.gap = gap  # as learnt before
    came = [Request(lane, 1) for _ in range(12)]
    for n, request in enumerate(came):
        place.at(0.0001 + n * gap, lambda r=request: place.submit(r))
    return place, came


def test_the_last_idle_worker_waits_where_that_pays() -> None:
    """Images come quickly and run cheaper together: the next bucket is filled before the model starts."""
    place, came = busy_world(gap=0.0001, delay=0.001, saving=0.0008)
    place.run(until=0.01)
    assert len(place.batches[1].parts) > 1
    assert place.batches[1].started - came[0].arrived <= 0.001


@pytest.mark.parametrize(
    ("gap", "delay", "saving"),
    [(0.0009, 0.001, 0.0001), (0.0001, 0.0, 0.0008), (0.005, 0.001, 0.0008)],
    ids=["it saves less than it costs", "no delay is allowed", "nobody comes in time"],
)
def test_nobody_waits_where_that_does_not_pay(gap: float, delay: float, saving: float) -> None:
    """The first image that finds the idle worker is run at once."""
    place, came = busy_world(gap, delay, saving)
    place.run(until=0.00011)
    assert place.batches[1].started == came[0].arrived


def test_a_rate_that_no_longer_holds_is_not_waited_for() -> None:
    """Images came every 20 ms, but the last one 950 ms ago: whoever becomes idle then takes what there is."""
    place, (lane,) = world(delay=10.0)
    for size in place.scheduler.buckets:
        lane.learn(size, 1.0)
    ends = iter([0.95, 5.0, 1.0])
    place.cost = lambda size, rng: next(ends)
    place.submit(Request(lane, 2))
    third = Request(lane, 1)
    place.submit(third)
    lane.gap = 0.02
    place.run(until=0.96)
    assert third.starts == [0.95]


def test_a_wait_ends_when_nothing_else_runs_any_more() -> None:
    """The other worker becomes idle: the image is run at once instead of at the end of the delay."""
    place, (lane,) = world(delay=0.5)
    place.cost = lambda size, rng: 0.01
    for size in place.scheduler.buckets:
        lane.learn(size, 1.0)
    place.submit(Request(lane, 1))
    lane.gap, lane.last = 0.001, 0.005
    held = Request(lane, 1)
    place.at(0.0055, lambda: place.submit(held))
    place.run(until=0.006)
    assert held.starts == []
    place.run()
    assert held.starts == [0.01]


def test_waits_that_are_in_vain_are_left_off() -> None:
    """Two clients on two workers: by the rate another image is due, and yet none comes before one is answered."""
    place, (lane,) = world(delay=0.005)
    place.cost = lambda size, rng: 0.004 + 0.0001 * size
    for size in place.scheduler.buckets:
        lane.learn(size, place.cost(size, place.rng))

    def send_again(request: Request) -> None:
        if place.now < 4:
            place.at(place.now + 0.0005, lambda: place.submit(Request(lane, 1)))

    place.on_end = send_again
    place.submit(Request(lane, 1))
    place.at(0.002, lambda: place.submit(Request(lane, 1)))
    place.run()
    waited = [request for request in place.requests if request.starts[0] > request.arrived]
    assert 0 < len(waited) < 0.05 * len(place.requests)


def test_the_rule_is_no_worse_than_not_waiting_and_better_where_batches_save() -> None:
    """What decision 0009 claims: a window ruins few clients; the rule does not, and it gains with more of them."""
    two = {rule: served(EVEN, rule, 2.0, clients=2)["per_second"] for rule in ("never", "window 5 ms", "server's 5 ms")}
    assert two["window 5 ms"] < 0.7 * two["never"] < 0.95 * two["server's 5 ms"]
    more = {
        (clients, rule): served(EVEN, rule, 2.0, clients=clients)["per_second"]
        for clients in (8, 16)
        for rule in ("never", "server's 5 ms")
    }
    assert more[8, "server's 5 ms"] > 0.97 * more[8, "never"]
    assert more[16, "server's 5 ms"] > 1.1 * more[16, "never"]


LINEAR = {1: 1.33e-3, 2: 2.45e-3, 4: 4.68e-3, 8: 9.14e-3}


@pytest.mark.parametrize(
    ("cost", "waiting", "size"),
    [(LINEAR, 4, 2), (LINEAR, 2, 1), (LINEAR, 16, 8), (EVEN, 4, 4), (EVEN, 3, 2), ({}, 4, 4)],
    ids=["half of four", "one of two", "a long line", "cheaper together", "a bucket of three", "nothing learnt"],
)
def test_a_worker_leaves_those_that_run_their_share_unless_images_are_cheaper_together(
    cost: dict[int, float], waiting: int, size: int
) -> None:
    """The other worker is busy, and finds as much when it ends; a batch that saves a fifth is not divided."""
    scheduler: Scheduler[Request] = Scheduler(workers=2, max_batch=8, capacity=64)
    scheduler.open(lane := Lane[Request]())
    for images, seconds in cost.items():
        lane.learn(images, seconds)
    scheduler.add(Request(lane, 1), 0.0)
    assert isinstance(scheduler.take(0.0), Batch)
    scheduler.add(Request(lane, waiting), 0.0)
    batch = scheduler.take(0.0)
    assert isinstance(batch, Batch)
    assert len(batch.parts) == size


def test_a_slow_execution_does_not_divide_batches_for_ever() -> None:
    """A batch of four once took five seconds, and the line is never so long that it calls for four."""
    scheduler: Scheduler[Request] = Scheduler(workers=2, max_batch=8, capacity=64)
    scheduler.open(lane := Lane[Request]())
    for images, seconds in EVEN.items():
        lane.learn(images, seconds)
    lane.learn(4, 5.0)
    scheduler.add(Request(lane, 1), 0.0)
    assert isinstance(scheduler.take(0.0), Batch)  # the other worker is busy all the time
    sizes = []
    for _ in range(10_000):
        scheduler.add(four := Request(lane, 4), 0.0)
        batch = scheduler.take(0.0)
        assert isinstance(batch, Batch)
        scheduler.drop(four)
        sizes.append(len(batch.parts))
        scheduler.done(batch, 0.0, [(sizes[-1], EVEN[sizes[-1]])])
    assert set(sizes[:200]) == {2}
    assert set(sizes[-200:]) == {4}


def test_a_lone_worker_takes_all_it_may() -> None:
    """There is nobody to leave anything to."""
    place, (lane,) = world(workers=1)
    for size, seconds in LINEAR.items():
        lane.learn(size, seconds)
    place.submit(Request(lane, 4))
    assert [len(batch.parts) for batch in place.batches] == [4]


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("load", [0.5, 0.7])
def test_at_moderate_load_the_slowest_are_answered_sooner_than_by_the_largest_batches(
    workers: int, load: float
) -> None:
    """What decision 0009 claims of a model whose batches save little; a long line is served as fast."""
    rate = load * workers * 8 / LINEAR[8]
    p99 = {
        rule: served(LINEAR, rule, 4.0, rate=rate, workers=workers)["p99_ms"] for rule in ("among the idle", "server's")
    }
    assert p99["server's"] < 0.9 * p99["among the idle"]
    long = {
        rule: served(LINEAR, rule, 2.0, clients=32, workers=workers)["per_second"]
        for rule in ("among the idle", "server's")
    }
    assert long["server's"] > 0.98 * long["among the idle"]


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("load", [0.3, 0.7])
def test_where_batches_save_much_they_are_not_divided(workers: int, load: float) -> None:
    """A fixed share would keep everybody waiting longer."""
    rate = load * min(workers * 8 / EVEN[8], 2500)
    p50 = {
        rule: served(EVEN, rule, 2.0, rate=rate, workers=workers)["p50_ms"]
        for rule in ("among the idle", "among all", "server's")
    }
    assert p50["server's"] < 1.02 * p50["among the idle"] < p50["among all"]


def test_a_full_queue_refuses_and_has_room_again_when_images_are_done_or_dropped() -> None:
    """Room is counted in images; a request is let in whole or not at all."""
    place, (lane,) = world(workers=1, max_batch=1, capacity=4)
    first, second = Request(lane, 2), Request(lane, 2)
    assert place.submit(first) and place.submit(second)
    assert not place.submit(Request(lane, 1))
    place.cancel(second)
    assert place.scheduler.held == 2
    assert not place.submit(Request(lane, 3))
    assert place.submit(Request(lane, 2))
    place.run()
    assert place.submit(Request(lane, 9)), "larger than the queue, and nothing else is there"


def test_low_priority_fills_only_half_of_the_room() -> None:
    """A flood of it must not turn normal requests away."""
    place, (lane,) = world(capacity=10)
    sent = [place.submit(Request(lane, 1, low=True)) for _ in range(10)]
    assert sum(sent) == 5
    assert all(place.submit(Request(lane, 1)) for _ in range(5))


def test_a_low_image_is_served_within_its_patience_and_the_line_that_it_then_joins() -> None:
    """Normal images come just as fast as they can be run, for ever, and thirty of them always wait."""
    place, (lane,) = world(workers=1, max_batch=1, capacity=80, patience=0.5)
    pace = steady(1, place.rng)
    low = Request(lane, 3, low=True)
    for _ in range(30):
        place.submit(Request(lane, 1))
    place.submit(low)
    for n in range(2000):
        place.at(n * pace + pace / 2, lambda: place.submit(Request(lane, 1)))
    place.run(until=0.5)
    assert low.starts == [], "a low image ran while normal ones waited"
    place.run()
    assert low.fate == "answered"
    assert low.ended - low.arrived <= 0.5 + 35 * pace


def test_what_waits_for_another_model_is_served_in_its_turn() -> None:
    """A flood for one model holds up an image for another by no more than what came before it."""
    place, (flooded, quiet) = world(lanes=2, workers=1, capacity=200)
    for _ in range(100):
        place.submit(Request(flooded, 1))
    one = Request(quiet, 1)
    place.submit(one)
    for n in range(400):
        place.at(0.001 * n, lambda: place.submit(Request(flooded, 1)))
    place.run()
    before = [batch for batch in place.batches if batch.started < one.starts[0]]
    assert sum(len(batch.parts) for batch in before) <= 101 + 8


def test_a_lane_that_is_shut_takes_no_part_any_more() -> None:
    """The others go on."""
    place, (old, new) = world(lanes=2)
    place.submit(Request(old, 1))
    place.run()
    place.scheduler.shut(old)
    place.submit(Request(new, 1))
    place.run()
    assert [request.fate for request in place.requests] == ["answered", "answered"]


@pytest.mark.parametrize("cost", [steady, wild], ids=["steady", "wild"])
def test_under_twice_the_load_most_of_the_capacity_still_answers_in_time(cost: Cost) -> None:
    """The trap of a queue with deadlines: work on what will be late, while what could still be saved gets late."""

    def answered(load: float, deadline: float) -> int:
        place, (lane,) = world(capacity=256, cost=cost, seed=3)
        time = 0.0
        for _ in range(round(3000 * load)):
            time += place.rng.expovariate(load * 1000)
            place.at(time, lambda at=time: place.submit(Request(lane, 1, at + deadline)))
        place.run()
        assert all(request.ended <= request.deadline for request in place.requests)
        return sum(request.fate == "answered" for request in place.requests)

    possible = answered(2.0, 1.0)  # nearly all the model can do in that time
    assert answered(2.0, 0.05) > 0.7 * possible


def test_a_request_that_the_line_makes_late_is_refused_at_once() -> None:
    """Its client may try elsewhere while there is time; with more patience it would have been let in."""
    place, (lane,) = world(workers=1, max_batch=1, capacity=100)
    for _ in range(20):
        place.submit(Request(lane, 1))
    place.run(until=0.021)  # ten are done, two milliseconds each
    hasty, patient = Request(lane, 1, place.now + 0.01), Request(lane, 1, place.now + 0.04)
    assert not place.submit(hasty) and hasty.fate == "deadline-exceeded"
    assert place.submit(patient)
    place.run()
    assert patient.fate == "answered"
    assert not place.submit(Request(lane, 1, place.now))


def test_a_slow_spell_does_not_shut_the_door_for_ever() -> None:
    """The estimate says ten seconds an image from one bad execution; requests with a second are let in and mend it."""
    place, (lane,) = world(workers=1)
    place.cost = lambda size, rng: 10.0
    place.submit(Request(lane, 1))
    place.run()
    place.cost = steady
    for n in range(2000):
        place.at(20 + n * 0.01, lambda: place.submit(Request(lane, 1, place.now + 1.0)))
    place.run()
    assert [request.fate for request in place.requests[-1000:]] == ["answered"] * 1000


def test_what_was_admitted_before_is_let_in_whatever_waits() -> None:
    """Its images were decoded already: to refuse it now would be to have worked for nothing."""
    scheduler: Scheduler[Job] = Scheduler(workers=1, max_batch=1, capacity=2)
    scheduler.open(lane := Lane())
    scheduler.add(Job(lane, 2), 0.0)
    with pytest.raises(QueueFull):
        scheduler.add(Job(lane, 1), 0.0)
    scheduler.add(Job(lane, 1, admitted=True), 0.0)
    scheduler.add(Job(lane, 1, low=True, admitted=True), 0.0)
    assert scheduler.held == 4
