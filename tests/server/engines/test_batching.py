"""The queue: what runs together, what is refused, and that nothing is lost or mixed up."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from server.core import clock
from server.core.engine import Outputs, Terms
from server.core.images import PixelArray
from server.engines.batching import Batcher
from server.errors import (
    AWNetError,
    DeadlineExceeded,
    EngineFault,
    EngineUnavailable,
    ImageError,
    MissingImage,
    QueueFull,
    status_of,
)
from tests.waiting import settle, until

SIZE = 4


def image(value: int) -> PixelArray:
    return PixelArray(np.full((3, SIZE, SIZE), value, np.uint8))


class Broken:
    """An image that cannot be decoded."""

    def pixels(self, size: int) -> Any:
        raise ImageError("broken", image=0)


class Slow(PixelArray):
    """An image whose decoding lasts as long as `wait` does."""

    def __init__(self, value: int, wait: Callable[[], object]) -> None:
        super().__init__(image(value).pixels(SIZE))
        self.wait = wait

    def pixels(self, size: int) -> Any:
        self.wait()
        return super().pixels(size)


class Model:
    """Answers each image with its own value; waits for `gate`, and remembers its batches."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.alone: list[bool] = []
        self.running = 0
        self.most_running = 0

    def __call__(self, images: np.ndarray, alone: bool) -> Outputs:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.batches.append(len(images))
        self.alone.append(alone)
        assert self.gate.wait(30)
        value = images[:, 0, 0, :1].astype(np.float32)
        self.running -= 1
        if (value == 255).any():
            raise RuntimeError("the runtime's own error")
        return value, value.repeat(2, 1), value.repeat(3, 1)


class Queue:
    """A batcher with one model."""

    def __init__(self, model: Callable[..., Outputs], **options: Any) -> None:
        self.batcher = Batcher(**{"workers": 2, "max_batch": 4, "capacity": 16, **options})
        self.feed = self.batcher.open(model, SIZE)
        self.submit = self.feed.submit
        self.close = self.batcher.close

    @property
    def pending(self) -> int:
        return self.batcher.pending


def batcher(model: Callable[..., Outputs], **options: Any) -> Queue:
    return Queue(model, **options)


def run(scenario: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(scenario(), 60))


def test_every_request_gets_its_own_rows() -> None:
    """Two hundred requests of one to five images, through batches of at most four."""

    async def scenario() -> None:
        model = Model()
        queue = batcher(model, capacity=10_000)
        wanted = [[(7 * n + k) % 250 for k in range(1 + n % 5)] for n in range(200)]
        got = await asyncio.gather(*[queue.submit([image(v) for v in values]) for values in wanted])
        for values, signals in zip(wanted, got, strict=True):
            assert signals.logits[:, 0].tolist() == values
            assert signals.p_type.shape == (len(values), 2)
            assert signals.omega.shape == (len(values), 3)
        assert set(model.batches) <= {1, 2, 4}
        assert sum(model.batches) == sum(map(len, wanted))
        assert queue.pending == 0
        await queue.close()

    run(scenario)


def test_what_is_waiting_runs_together_and_nothing_waits_to_be_joined() -> None:
    """A lone image runs at once, by itself; those that came meanwhile share an execution."""

    async def scenario() -> None:
        model = Model()
        model.gate.clear()
        queue = batcher(model, workers=1)
        first = asyncio.create_task(queue.submit([image(1)]))
        await until(lambda: model.batches)
        others = [asyncio.create_task(queue.submit([image(v)])) for v in (2, 3, 4, 5)]
        await until(lambda: queue.pending == 5)
        model.gate.set()
        await asyncio.gather(first, *others)
        assert model.batches == [1, 4]
        await queue.close()

    run(scenario)


def test_a_lone_image_is_told_that_it_is_alone() -> None:
    """So that it may use all cores; a batch, or an image beside another, may not."""

    async def scenario() -> None:
        model = Model()
        queue = batcher(model)
        await queue.submit([image(1)])
        assert model.alone == [True]
        model.gate.clear()
        both = [asyncio.create_task(queue.submit([image(v)])) for v in (1, 2)]
        await until(lambda: len(model.batches) == 3)
        model.gate.set()
        await asyncio.gather(*both)
        assert model.alone[2] is False
        await queue.close()

    run(scenario)


def test_all_workers_run_at_once() -> None:
    """A large request does not leave a core idle."""

    async def scenario() -> None:
        model = Model()
        model.gate.clear()
        queue = batcher(model)
        task = asyncio.create_task(queue.submit([image(v) for v in range(8)]))
        await until(lambda: model.most_running == 2)
        model.gate.set()
        await task
        await queue.close()

    run(scenario)


def test_a_full_queue_refuses_and_recovers() -> None:
    """At once, before any work, and only as long as it is full."""

    async def scenario() -> None:
        model = Model()
        model.gate.clear()
        queue = batcher(model, capacity=4)
        accepted = [asyncio.create_task(queue.submit([image(v)])) for v in range(4)]
        await asyncio.sleep(0)
        assert queue.pending == 4
        with pytest.raises(QueueFull):
            await queue.submit([image(9)])
        model.gate.set()
        assert [s.logits[0, 0] for s in await asyncio.gather(*accepted)] == [0, 1, 2, 3]
        assert (await queue.submit([image(9)])).logits[0, 0] == 9
        await queue.close()

    run(scenario)


def test_a_request_larger_than_the_queue_is_answered_when_nothing_else_waits() -> None:
    """Or it could never be answered at all."""

    async def scenario() -> None:
        queue = batcher(Model(), capacity=2)
        assert (await queue.submit([image(v) for v in range(5)])).logits[:, 0].tolist() == [0, 1, 2, 3, 4]
        await queue.close()

    run(scenario)


def test_an_image_that_cannot_be_decoded_fails_its_own_request_only() -> None:
    """Its neighbours in the batch are answered."""

    async def scenario() -> None:
        model = Model()
        model.gate.clear()
        queue = batcher(model, workers=1)
        first = asyncio.create_task(queue.submit([image(1)]))
        await until(lambda: model.batches)
        good = asyncio.create_task(queue.submit([image(2)]))
        bad = asyncio.create_task(queue.submit([image(3), Broken()]))
        await until(lambda: queue.pending == 4)
        model.gate.set()
        with pytest.raises(ImageError, match="broken"):
            await bad
        assert (await first).logits[0, 0] == 1
        assert (await good).logits[0, 0] == 2
        await until(lambda: queue.pending == 0)  # the refused request's other image may still be at work
        await queue.close()

    run(scenario)


class Exploding:
    """An image whose decoding fails in a way that nobody foresaw."""

    def pixels(self, size: int) -> Any:
        raise RuntimeError("private")


def test_an_unforeseen_fault_in_decoding_does_not_end_the_worker() -> None:
    """Its request fails without saying why, and the next one is answered."""

    async def scenario() -> None:
        queue = batcher(Model(), workers=1)
        with pytest.raises(AWNetError) as fault:
            await queue.submit([Exploding()])
        assert "private" not in fault.value.detail
        assert status_of(fault.value) == 500
        assert (await queue.submit([image(5)])).logits[0, 0] == 5
        assert queue.pending == 0
        await queue.close()

    run(scenario)


def test_a_model_that_fails_fails_the_request_and_not_the_worker() -> None:
    """The next request is answered."""

    async def scenario() -> None:
        queue = batcher(Model(), workers=1)
        with pytest.raises(EngineFault) as fault:
            await queue.submit([image(255)])
        assert "runtime" not in fault.value.detail
        assert (await queue.submit([image(5)])).logits[0, 0] == 5
        assert queue.pending == 0
        await queue.close()

    run(scenario)


def test_a_client_that_left_costs_no_inference_and_no_room() -> None:
    """Its images are dropped where they wait."""

    async def scenario() -> None:
        model = Model()
        model.gate.clear()
        queue = batcher(model, workers=1)
        first = asyncio.create_task(queue.submit([image(1)]))
        await until(lambda: model.batches)
        gone = asyncio.create_task(queue.submit([image(2)]))
        await until(lambda: queue.pending == 2)
        gone.cancel()
        await settle()
        assert queue.pending == 1, "room is free at once, while the first is still running"
        model.gate.set()
        await first
        await queue.submit([image(3)])
        assert sum(model.batches) == 2
        assert queue.pending == 0
        await queue.close()

    run(scenario)


def test_a_request_without_images_is_refused() -> None:
    """It would never be complete."""

    async def scenario() -> None:
        queue = batcher(Model())
        with pytest.raises(MissingImage):
            await queue.submit([])
        await queue.close()

    run(scenario)


def test_a_batcher_whose_workers_finish_nothing_has_stalled() -> None:
    """Counted from the first image that waits, and over as soon as a batch ends; an idle one never has."""

    async def scenario() -> None:
        model = Model()
        queue = batcher(model, workers=1)
        batches = queue.batcher
        await asyncio.sleep(0.05)
        assert not batches.stalled(0.02)
        model.gate.clear()
        stuck = asyncio.create_task(queue.submit([image(1)]))
        await until(lambda: model.batches)
        assert not batches.stalled(60)
        await until(lambda: batches.stalled(0.02))
        model.gate.set()
        await stuck
        assert not batches.stalled(0.0)
        await queue.close()

    run(scenario)


def test_closing_answers_what_was_accepted_and_refuses_the_rest() -> None:
    """Nobody is left waiting for ever."""

    async def scenario() -> None:
        model = Model()
        queue = batcher(model)
        tasks = [asyncio.create_task(queue.submit([image(v)])) for v in range(10)]
        await asyncio.sleep(0)
        await queue.close()
        assert [s.logits[0, 0] for s in await asyncio.gather(*tasks)] == list(range(10))
        with pytest.raises(EngineUnavailable):
            await queue.submit([image(1)])

    run(scenario)


def test_the_stages_add_up_to_the_time_that_passed() -> None:
    """Decode is decoding, inference is running, queue is the rest."""

    async def scenario() -> None:
        queue = batcher(lambda images, alone: (time.sleep(0.05), Model()(images, alone))[1])
        begin = time.perf_counter()
        signals = await queue.submit([Slow(1, lambda: time.sleep(0.1))])
        total = time.perf_counter() - begin
        assert signals.decode_seconds >= 0.1
        assert signals.inference_seconds >= 0.05
        assert signals.decode_seconds + signals.queue_seconds + signals.inference_seconds <= total + 1e-6
        await queue.close()

    run(scenario)


def test_every_execution_is_reported_with_its_size() -> None:
    """The metric of batch sizes is filled from here."""

    async def scenario() -> None:
        sizes: list[int] = []
        model = Model()
        queue = batcher(model, on_batch=sizes.append)
        await queue.submit([image(v) for v in range(9)])
        assert sum(sizes) == 9
        assert sorted(sizes) == sorted(model.batches)
        await queue.close()

    run(scenario)


def test_executions_are_buckets_though_an_image_of_the_batch_is_broken() -> None:
    """Of four images taken together three are left: they run as two and one."""

    async def scenario() -> None:
        model = Model()
        model.gate.clear()
        queue = batcher(model, workers=1)
        first = asyncio.create_task(queue.submit([image(1)]))
        await until(lambda: model.batches)
        good = [asyncio.create_task(queue.submit([image(v)])) for v in (2, 3, 4)]
        bad = asyncio.create_task(queue.submit([Broken()]))
        await until(lambda: queue.pending == 5)
        model.gate.set()
        assert [(await task).logits[0, 0] for task in (first, *good)] == [1, 2, 3, 4]
        with pytest.raises(ImageError):
            await bad
        assert model.batches == [1, 2, 1]
        await queue.close()

    run(scenario)


def test_a_late_request_is_answered_at_its_deadline_while_its_execution_still_runs() -> None:
    """The client is not held by a slow model, and what was not started never is."""

    async def scenario() -> None:
        model = Model()
        model.gate.clear()
        queue = batcher(model, workers=1)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded) as late:
            await queue.submit([image(v) for v in range(6)], Terms(deadline=started + 0.5))
        assert 0.5 <= time.monotonic() - started < 20, "the model would hold it for 30 s"
        assert status_of(late.value) == 504
        assert queue.pending == 4, "four are running, two were taken out of the queue"
        model.gate.set()
        assert (await queue.submit([image(9)])).logits[0, 0] == 9
        assert model.batches == [4, 1]
        with pytest.raises(DeadlineExceeded):
            await queue.submit([image(1)], Terms(deadline=clock.now()))
        await queue.close()

    run(scenario)


def test_normal_requests_go_before_low_ones() -> None:
    """A low one that came first runs last."""

    async def scenario() -> None:
        model = Model()
        model.gate.clear()
        order: list[int] = []

        def noted(images: np.ndarray, alone: bool) -> Outputs:
            order.append(int(images[0, 0, 0, 0]))
            return model(images, alone)

        queue = batcher(noted, workers=1)
        tasks = [asyncio.create_task(queue.submit([image(1)]))]
        await until(lambda: model.batches)
        tasks += [asyncio.create_task(queue.submit([image(2)], Terms(priority="low")))]
        tasks += [asyncio.create_task(queue.submit([image(3)]))]
        await until(lambda: queue.pending == 3)
        model.gate.set()
        await asyncio.gather(*tasks)
        assert order == [1, 3, 2]
        await queue.close()

    run(scenario)


def test_images_of_two_models_never_share_a_batch_and_each_gets_its_own_answer() -> None:
    """One pool, one queue, one bound; the models do not notice each other."""

    async def scenario() -> None:
        one, two = Model(), Model()
        queue = batcher(one, capacity=400)

        def run_two(images: np.ndarray, alone: bool) -> Outputs:
            logits, p_type, omega = two(images, alone)
            return logits + 1000, p_type, omega

        other = queue.batcher.open(run_two, SIZE)
        asked = [(queue.submit if n % 3 else other.submit)([image(n % 200)]) for n in range(300)]
        got = [signals.logits[0, 0] for signals in await asyncio.gather(*asked)]
        assert got == [n % 200 + (0 if n % 3 else 1000) for n in range(300)]
        assert sum(one.batches) == 200
        await queue.close()

    run(scenario)


def test_closing_one_model_answers_what_it_accepted_and_lets_go_of_it() -> None:
    """The other one, and its images in the same queue, are not disturbed."""

    async def scenario() -> None:
        old, new = Model(), Model()
        queue = batcher(old, workers=1, capacity=100)
        other = queue.batcher.open(new, SIZE)
        old.gate.clear()
        asked = [asyncio.create_task(queue.submit([image(v)])) for v in range(10)]
        beside = [asyncio.create_task(other.submit([image(v)])) for v in range(10)]
        await until(lambda: queue.pending == 20)
        closing = asyncio.create_task(queue.feed.close())
        await settle()
        assert not closing.done()
        with pytest.raises(EngineUnavailable):
            await queue.submit([image(1)])
        old.gate.set()
        await closing
        gone = weakref.ref(old)
        queue.feed = None  # type: ignore[assignment]
        assert [s.logits[0, 0] for s in await asyncio.gather(*asked)] == list(range(10))
        assert [s.logits[0, 0] for s in await asyncio.gather(*beside)] == list(range(10))
        del old, queue.submit
        assert (await other.submit([image(7)])).logits[0, 0] == 7
        await until(lambda: gone() is None)
        await queue.close()

    run(scenario)


def test_warming_runs_every_size_and_a_fault_there_is_told() -> None:
    """A version that cannot run a full batch is found before it gets any request."""

    async def scenario() -> None:
        model = Model()
        queue = batcher(model, max_batch=6)
        await queue.feed.warm(np.zeros((3, 3, SIZE, SIZE), np.uint8))
        ran = list(zip(model.batches, model.alone, strict=True))
        assert ran == [(1, True), (6, False), (4, False), (2, False), (1, False)]  # each once: the start waits for them
        with pytest.raises(EngineFault):
            await queue.feed.warm(np.full((1, 3, SIZE, SIZE), 255, np.uint8))
        await queue.close()

    run(scenario)


def test_a_request_aside_needs_neither_room_nor_a_worker() -> None:
    """Its executions are buckets, its rows come in order, and a fault in it is told."""

    async def scenario() -> None:
        model, held = Model(), threading.Event()
        queue = batcher(model, workers=1, capacity=1)
        waiting = asyncio.create_task(queue.submit([Slow(1, held.wait)]))
        try:
            await until(lambda: not queue.batcher._sleepers)
            with pytest.raises(QueueFull):
                await queue.submit([image(2)])
            signals = await queue.feed.aside([image(value) for value in range(7)], None)
            assert signals.logits[:, 0].tolist() == list(range(7))
            assert (signals.p_type.shape, signals.omega.shape) == ((7, 2), (7, 3))
            await queue.feed.aside([image(3)], None)
            assert list(zip(model.batches, model.alone, strict=True)) == [(4, False), (2, False), (1, False), (1, True)]
            with pytest.raises(EngineFault):
                await queue.feed.aside([image(255)], None)
        finally:
            held.set()
        assert (await waiting).logits[0, 0] == 1
        await queue.close()

    run(scenario)


@pytest.mark.parametrize("seed", range(3))
def test_in_a_storm_every_request_has_one_end(seed: int) -> None:
    """Real threads, two models, failures, broken and slow inputs, clients that leave, deadlines, both priorities."""
    rng = random.Random(seed)

    async def scenario() -> None:
        def shaky(images: np.ndarray, alone: bool) -> Outputs:
            time.sleep(rng.choice([0, 0.001, 0.01]))
            return Model()(images, alone)

        queue = batcher(shaky, workers=3, capacity=60, delay=0.001)
        feeds = [queue.feed, queue.batcher.open(shaky, SIZE)]
        await feeds[0].warm(np.zeros((1, 3, SIZE, SIZE), np.uint8))
        ends: dict[str, int] = {}

        async def one() -> None:
            values = [
                rng.randrange(256) if rng.random() < 0.02 else rng.randrange(250) for _ in range(rng.choice([1, 1, 5]))
            ]
            inputs: list[Any] = [
                image(v) if rng.random() < 0.97 else Slow(v, lambda: time.sleep(0.005)) for v in values
            ]
            if rng.random() < 0.03:
                inputs.append(Broken())
            deadline = clock.now() + rng.choice([0.0, 0.01, 0.05, 10, float("inf")])
            terms = Terms(deadline, rng.choice(["normal", "low"]))
            asked = asyncio.ensure_future(rng.choice(feeds).submit(inputs, terms))
            if rng.random() < 0.1:
                asyncio.get_running_loop().call_later(rng.uniform(0, 0.02), asked.cancel)
            try:
                signals = await asked
                assert signals.logits[:, 0].tolist() == values and len(inputs) == len(values)
                end = "answered"
            except (AWNetError, asyncio.CancelledError) as error:
                end = type(error).__name__
            ends[end] = ends.get(end, 0) + 1

        tasks = []
        for _ in range(600):
            tasks.append(asyncio.create_task(one()))
            await asyncio.sleep(rng.choice([0, 0, 0.002]))
            if rng.random() < 0.05:
                await until(lambda: queue.pending < 30)  # or a slow machine would refuse nearly all of them
        await asyncio.gather(*tasks)
        await queue.close()
        assert queue.pending == 0
        assert sum(ends.values()) == 600
        assert set(ends) <= {
            "answered",
            "CancelledError",
            "DeadlineExceeded",
            "EngineFault",
            "ImageError",
            "QueueFull",
        }
        assert ends["answered"] > 50

    run(scenario)
