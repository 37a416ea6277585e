"""The clock of deadlines stands still while the process does, and at no other time."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
import time
from typing import Any

import pytest

from server.core.clock import LATE_SECONDS, MARK_SECONDS, Clock


class Seconds:
    """A clock that a test turns on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_marks_it_is_the_other_clock() -> None:
    """Programs that keep none, as most tests are, see every second."""
    seconds = Seconds()
    clock = Clock(seconds)
    seconds.now += 3600
    assert clock.now() == seconds.now and clock.stood_still == 0


def test_seconds_without_a_mark_do_not_count_and_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    seconds = Seconds()
    clock = Clock(seconds)
    clock.mark()
    seconds.now += MARK_SECONDS
    clock.mark()
    before = clock.now()
    seconds.now += 45
    assert clock.now() == before + MARK_SECONDS
    assert clock.now() == before + MARK_SECONDS
    clock.mark()
    clock.mark()
    assert clock.stood_still == 45 - MARK_SECONDS
    seconds.now += 1
    assert clock.now() == before + MARK_SECONDS + 1

    async def keep() -> None:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(clock.keep(), MARK_SECONDS / 2)

    with caplog.at_level(logging.WARNING, "awnet"):
        asyncio.run(keep())
    assert [record.getMessage() for record in caplog.records] == [
        "the process stood still for 44.8 s; no deadline counts that"
    ]


def test_a_loop_that_is_only_busy_loses_no_second() -> None:
    seconds = Seconds()
    clock = Clock(seconds)
    for _ in range(10):
        clock.mark()
        before = clock.now()
        seconds.now += MARK_SECONDS + LATE_SECONDS
        assert clock.now() == before + MARK_SECONDS + LATE_SECONDS
    assert clock.stood_still == 0


def test_a_loop_that_is_kept_busy_for_long_loses_no_second() -> None:
    """Else whoever can keep it busy would win time for clients that send slowly."""
    seconds, busy = Seconds(), Seconds()
    clock = Clock(seconds, busy)
    for _ in range(10):
        clock.mark()
        before = clock.now()
        seconds.now += 10
        busy.now += 9.9
        assert clock.now() == before + 10
    assert clock.stood_still == 0
    clock.mark()
    seconds.now += 10
    busy.now += 2
    clock.now()
    assert clock.stood_still == pytest.approx(10 - MARK_SECONDS - 2)


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="the system tells no thread's processor time")
def test_work_of_the_loop_itself_is_no_standing_still() -> None:
    async def run() -> None:
        clock = Clock()
        keeper = asyncio.create_task(clock.keep())
        await asyncio.sleep(0)
        until = time.thread_time() + MARK_SECONDS + LATE_SECONDS + 0.2
        begun = time.monotonic()
        while time.thread_time() < until:
            pass
        took, worked = time.monotonic() - begun, MARK_SECONDS + LATE_SECONDS + 0.2
        clock.now()
        assert clock.stood_still <= took - worked + 0.05
        keeper.cancel()

    asyncio.run(run())


def test_while_some_thread_reads_it_the_process_does_not_stand_still() -> None:
    seconds = Seconds()
    clock = Clock(seconds)
    clock.mark()
    before = clock.now()
    for _ in range(10):
        seconds.now += LATE_SECONDS
        clock.now()
    assert clock.now() == before + 10 * LATE_SECONDS and clock.stood_still == 0


@pytest.mark.parametrize("seed", range(20))
def test_it_never_goes_back_and_counts_no_more_than_the_process_stood_still(seed: int) -> None:
    """A hundred lives of up to fifty spans each, in which it runs or stands and the event loop leaves marks or none."""
    rng = random.Random(seed)
    for _ in range(100):
        seconds = Seconds()
        clock = Clock(seconds)
        clock.mark()
        last, stood_still = clock.now(), 0.0
        for _ in range(rng.randrange(50)):
            if rng.random() < 0.5:
                span = rng.choice((rng.uniform(0, 5), 0.0, LATE_SECONDS, MARK_SECONDS, 5.0))
                stood_still += span
            else:
                span = min(rng.uniform(0, 5), MARK_SECONDS)
            seconds.now += span
            if rng.random() < 0.5:
                clock.mark()
            read = clock.now()
            assert read >= last - 1e-9 and clock.stood_still <= stood_still + 1e-9
            last = read


def test_threads_that_wake_together_count_it_once() -> None:
    seconds = Seconds()
    clock = Clock(seconds)
    clock.mark()
    seconds.now += 10
    ready, read = threading.Barrier(8), list[float]()

    def look() -> None:
        ready.wait()
        read.append(clock.now())

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read) == {100 + MARK_SECONDS} and clock.stood_still == 10 - MARK_SECONDS


def test_what_is_awaited_has_its_time_beside_what_stood_still() -> None:
    async def run() -> None:
        seconds = Seconds()
        clock = Clock(seconds)
        clock.mark()
        work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(clock.within(clock.now() + MARK_SECONDS + 0.05, work))
        seconds.now += 45  # the timer goes off, and finds that it is not time
        await asyncio.sleep(MARK_SECONDS + 0.2)
        assert not waiting.done()
        work.set_result(1)
        assert await waiting == 1
        late: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        seconds.now += 0.5
        with pytest.raises(TimeoutError):
            await clock.within(clock.now() - 0.1, late)
        assert late.cancelled()

    asyncio.run(run())


@pytest.mark.parametrize("gives_up", ["the deadline", "whoever waits"])
def test_what_is_given_up_is_no_error_in_the_log(gives_up: str) -> None:
    """asyncio reports failures that nobody has looked at; a request that is late, or whose client left, is none."""
    reports: list[dict[str, Any]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, report: reports.append(report))
        clock = Clock()
        work = asyncio.gather(loop.create_future(), loop.create_future())
        seconds = 0.0 if gives_up == "the deadline" else 60.0
        waiting = asyncio.create_task(clock.within(clock.now() + seconds, work))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled() or isinstance(waiting.exception(), TimeoutError)
        del work, waiting
        gc.collect()

    asyncio.run(run())
    gc.collect()
    assert reports == []


def test_marks_are_left_while_somebody_keeps_them() -> None:
    async def run() -> None:
        seconds = Seconds()
        clock = Clock(seconds, busy=lambda: 0.0)
        keepers = [asyncio.create_task(clock.keep()) for _ in range(2)]
        await asyncio.sleep(0)
        keepers[0].cancel()
        await asyncio.sleep(0)
        seconds.now += 45
        clock.now()
        assert clock.stood_still == 45 - MARK_SECONDS, "the other one keeps them"
        seconds.now += LATE_SECONDS
        await asyncio.sleep(2 * MARK_SECONDS)
        seconds.now += LATE_SECONDS
        clock.now()
        assert clock.stood_still == 45 - MARK_SECONDS, "a mark was left between the two, which are too long for one"
        keepers[1].cancel()
        await asyncio.sleep(0)
        seconds.now += 45
        clock.now()
        assert clock.stood_still == 45 - MARK_SECONDS, "nobody says any more that the process runs"

    asyncio.run(run())
