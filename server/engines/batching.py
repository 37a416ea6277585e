"""Batches requests: worker threads decode images and run models from one bounded queue.

There are as many worker threads as cores, and they serve all open models. A worker takes a batch from the queue,
decodes those of its images that are not decoded yet and runs the model, so that each image crosses threads twice.
`scheduling` decides what runs when. Its state is guarded by one lock, held for microseconds, once a request and once
a batch; all other shared state belongs to the event loop's thread. Deadlines, and what the scheduler learns, go by
`core.clock`: an execution in whose middle the process was stopped was no slow one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from ..core import clock
from ..core.engine import Execution, Outputs, Signals, Terms, Timeline
from ..core.images import ImageInput
from ..errors import AWNetError, DeadlineExceeded, EngineFault, EngineUnavailable, MissingImage
from .scheduling import Batch, Job, Lane, Scheduler

Run = Callable[[NDArray[np.uint8], bool], Outputs]
NO_DEADLINE = Terms()

log = logging.getLogger("awnet.batching")


class _Ticket(Job):
    """One request in the queue: its images, their result rows, and the future that completes with all of them."""

    __slots__ = (
        "decode",
        "decode_ended",
        "decode_started",
        "entered",
        "executions",
        "feed",
        "future",
        "images",
        "missing",
        "rows",
    )

    def __init__(self, feed: Feed, images: Sequence[ImageInput], future: asyncio.Future[Signals], terms: Terms) -> None:
        super().__init__(feed.lane, len(images), terms.deadline, terms.priority == "low", terms.admitted)
        self.feed = feed
        self.future = future
        self.images = images
        self.rows: list[tuple[Outputs, int] | None] = [None] * len(images)
        self.missing = len(images)
        self.entered = time.monotonic()
        self.decode = 0.0  # seconds
        self.decode_started, self.decode_ended = math.inf, 0.0
        self.executions: list[Execution] = []  # images of one request may share one


class _Piece:
    """One execution of a model: its parts, and their outputs or their common error."""

    __slots__ = ("decode", "error", "outputs", "parts", "seconds", "started")

    def __init__(
        self, parts: list[tuple[_Ticket, int]], decode: list[tuple[float, float]], error: AWNetError | None = None
    ) -> None:
        self.parts = parts
        self.decode = decode  # from when to when, a part each
        self.outputs: Outputs | None = None
        self.error = error
        self.started = self.seconds = 0.0


class Feed:
    """The queue of one mode of a model; made by `Batcher.open`."""

    def __init__(self, batcher: Batcher, run: Run, size: int) -> None:
        self.lane: Lane[_Ticket] = Lane()
        self.run: Run | None = run
        self.size = size
        self._batcher = batcher
        self.closing = False
        self._open = 0  # requests that were accepted and are not answered
        self._emptied = asyncio.Event()  # everybody is answered and nothing runs

    async def submit(self, images: Sequence[ImageInput], terms: Terms = NO_DEADLINE) -> Signals:
        """Run one request. Raises MissingImage, QueueFull, DeadlineExceeded, EngineFault, or what decoding raises.

        All of the images are answered or none. A client that goes away takes what still waits out of the queue.
        """
        if self.closing:
            raise EngineUnavailable("this version of the model has been closed")
        if not images:
            raise MissingImage("the request holds no image")
        batcher = self._batcher
        ticket = _Ticket(self, images, batcher.loop.create_future(), terms)
        batcher.enter(ticket)
        self._open += 1
        try:
            return await ticket.future
        finally:
            batcher.leave(ticket)
            self._open -= 1
            if self.closing:
                self.release_if_idle()

    async def warm(self, images: NDArray[np.uint8], executor: Executor | None = None) -> None:
        """Run every batch that may occur, and learn what it costs: the largest first, which makes room for the others.

        Args:
            images: [N,3,size,size] uint8, repeated as needed.
            executor: where they run; None: threads of the event loop.

        Raises:
            EngineFault: the model failed.
        """
        run = self._batcher.loop.run_in_executor
        await run(executor, self._rehearse, images[:1], True)
        for size in reversed(self._batcher.buckets):
            rows = np.ascontiguousarray(images[np.arange(size) % len(images)])
            _, seconds = await run(executor, self._rehearse, rows, False)
            self._batcher.learn(self.lane, size, seconds)

    def _rehearse(self, rows: NDArray[np.uint8], alone: bool) -> tuple[Outputs, float]:
        """One execution, and its seconds: processor time, since a thread in the background waits for a core."""
        started = time.thread_time()
        try:
            assert self.run is not None
            outputs = self.run(rows, alone)
        except Exception as error:  # whatever a runtime raises
            raise EngineFault(f"the model failed on a batch of {len(rows)}: {error}") from error
        return outputs, time.thread_time() - started

    async def aside(self, images: Sequence[ImageInput], executor: Executor | None) -> Signals:
        """Run one request past queue and workers, on `executor`. Raises EngineFault, or what decoding raises."""
        pixels = np.stack([image.pixels(self.size) for image in images])
        parts, at = [], 0
        for size in self._batcher.pieces(len(images)):
            rows = pixels[at : at + size]
            outputs, _ = await self._batcher.loop.run_in_executor(executor, self._rehearse, rows, len(images) == 1)
            parts.append(outputs)
            at += size
        logits, p_type, omega = map(np.concatenate, zip(*parts, strict=True))
        return Signals(logits, p_type, omega, 0.0, 0.0, 0.0)

    async def close(self) -> None:
        """Answer what was accepted, then let go of the model. Other feeds go on."""
        self.closing = True
        self.release_if_idle()
        await self._emptied.wait()

    def release_if_idle(self) -> None:
        """Let go of the model if this feed is closing, has answered everybody and nothing of it runs."""
        if self.closing and self.run is not None and not self._open and not self.lane.running:
            self.run = None
            self._batcher.forget(self)
            self._emptied.set()


class Batcher:
    """The queue and its worker threads. Made and used on the thread of a running event loop.

    Args:
        workers: threads.
        max_batch: largest batch.
        capacity: images that may wait or run, over all feeds.
        delay: longest wait for a fuller batch, seconds; see `scheduling`.
        on_batch: called with the size of each execution, on the event loop's thread.
    """

    def __init__(
        self,
        *,
        workers: int,
        max_batch: int,
        capacity: int,
        delay: float = 0.0,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._scheduler: Scheduler[_Ticket] = Scheduler(
            workers=workers, max_batch=max_batch, capacity=capacity, delay=delay
        )
        self._lock = threading.Lock()  # guards the scheduler, `_sleepers` and `_ending`
        self._sleepers: list[threading.Lock] = []  # one a worker that rests; released to wake it
        self._ending = False
        self._progress = 0.0  # when a batch ended, or when images came that none waited before
        self._feeds: set[Feed] = set()
        self._executions = 0
        self._due: dict[_Ticket, None] = {}  # requests with a deadline
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = NO_DEADLINE.deadline
        self._on_batch = on_batch
        self._threads = [threading.Thread(target=self._work, name=f"awnet-{i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def pending(self) -> int:
        """Images that wait or run."""
        return self._scheduler.held

    def stalled(self, seconds: float) -> bool:
        """Whether images wait or run and no worker has finished any for so long."""
        return self.pending > 0 and clock.now() - self._progress > seconds

    @property
    def buckets(self) -> tuple[int, ...]:
        """Sizes of executions."""
        return self._scheduler.buckets

    def pieces(self, images: int) -> list[int]:
        """Sizes of the executions of so many."""
        return self._scheduler.pieces(images)

    def open(self, run: Run, size: int) -> Feed:
        """Serve one more model.

        Args:
            run: (images [N,3,size,size] uint8, alone) -> (logits, p_type, omega), called on worker threads, at the
                same time on several; N is a bucket. `alone` says that no other work is there to share the cores with.
            size: side of the model's input, pixels.
        """
        feed = Feed(self, run, size)
        with self._lock:
            self._scheduler.open(feed.lane)
        self._feeds.add(feed)
        return feed

    async def close(self) -> None:
        """Answer what was accepted and end the threads."""
        await asyncio.gather(*[feed.close() for feed in list(self._feeds)])
        with self._lock:
            self._ending = True
            self._wake(len(self._threads))
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        if self._alarm is not None:
            self._alarm.cancel()

    # For feeds, on the event loop's thread.

    def enter(self, ticket: _Ticket) -> None:
        """Put a request in line. Raises QueueFull, DeadlineExceeded."""
        with self._lock:
            now, idle = clock.now(), not self._scheduler.held
            self._scheduler.add(ticket, now)
            if idle:
                self._progress = now
            self._wake(ticket.count)
        if ticket.deadline != NO_DEADLINE.deadline:
            self._due[ticket] = None
            if ticket.deadline < self._alarm_at:
                self._set_alarm(ticket.deadline)

    def leave(self, ticket: _Ticket) -> None:
        """The request has ended or was given up: free what it still holds of the queue."""
        self._due.pop(ticket, None)
        if ticket.missing:  # cancelled, late or failed
            with self._lock:
                self._scheduler.drop(ticket)

    def _set_alarm(self, when: float) -> None:
        """One timer for all deadlines, as requests mostly have the same time to live: it is seldom set anew."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        # Event loops count in whole milliseconds; a little late is right, early would only mean to look again.
        self._alarm = self.loop.call_later(max(0.0, when - clock.now()) + 0.001, self._expire)

    def _expire(self) -> None:
        """The answer of requests whose deadline has come, whatever still runs of them."""
        now, self._alarm, self._alarm_at = clock.now(), None, NO_DEADLINE.deadline
        for ticket in self._due:
            if ticket.deadline <= now and not ticket.future.done():
                ticket.future.set_exception(DeadlineExceeded("the deadline passed before the answer was there"))
        later = min((ticket.deadline for ticket in self._due if ticket.deadline > now), default=None)
        if later is not None:
            self._set_alarm(later)

    def learn(self, lane: Lane[_Ticket], size: int, seconds: float) -> None:
        """What an execution outside the queue has shown."""
        with self._lock:
            lane.learn(size, seconds)

    def forget(self, feed: Feed) -> None:
        """A feed has come to its end."""
        with self._lock:
            self._scheduler.shut(feed.lane)
        self._feeds.discard(feed)

    def _wake(self, workers: int) -> None:
        """Wake so many workers at most; with the lock held. The last to rest goes first: its core is warm."""
        for _ in range(min(workers, len(self._sleepers))):
            self._sleepers.pop().release()

    # Worker threads from here on.

    def _work(self) -> None:
        lock, scheduler, sleepers, now = self._lock, self._scheduler, self._sleepers, clock.now
        rest = threading.Lock()
        rest.acquire()
        batch: Batch[_Ticket] | None = None
        last: _Piece | None = None
        executions: list[tuple[int, float]] = []
        while True:
            with lock:
                if batch is not None:
                    self._progress = now()
                    scheduler.done(batch, self._progress, executions)
                work = scheduler.take(now())
                ending = self._ending
                if not isinstance(work, Batch):
                    sleepers.append(rest)
            if batch is not None:
                # Only now, so that its room in the queue is free once a client has its response.
                self._post(batch, last)
            batch = last = None  # a worker that rests holds no images and no model
            if isinstance(work, Batch):
                batch = work
                last, executions = self._run(batch)
            elif ending:
                return
            elif work is None:
                rest.acquire()
            elif not rest.acquire(timeout=max(0.0, work - now())):
                with lock:
                    if rest in sleepers:
                        sleepers.remove(rest)
                    else:  # woken in this very moment
                        rest.acquire()

    def _run(self, batch: Batch[_Ticket]) -> tuple[_Piece | None, list[tuple[int, float]]]:
        """Decode and execute. All pieces are posted but the last, which is returned with (size, seconds) of all."""
        executions: list[tuple[int, float]] = []
        last: _Piece | None = None
        images, parts, decode = self._decode(batch, batch.parts)
        at = 0
        # One size, unless an image was broken or its request was given up.
        for size in self._scheduler.pieces(len(images)):
            if last is not None:
                self._post(batch, last)
            rows = slice(at, at + size)
            last = _execute(images[rows], parts[rows], decode[rows], batch.alone)
            at += size
            if last.outputs is not None:
                executions.append((size, last.seconds))
        return last, executions

    def _decode(
        self, batch: Batch[_Ticket], parts: list[tuple[_Ticket, int]]
    ) -> tuple[list[NDArray[np.uint8]], list[tuple[_Ticket, int]], list[tuple[float, float]]]:
        """Pixels, parts and the times of decoding of what can be run; what cannot is posted."""
        images, ready, times = [], [], []
        for part in parts:
            ticket, index = part
            if ticket.future.done():
                continue  # the request was given up
            error: AWNetError
            started = time.monotonic()
            try:
                images.append(ticket.images[index].pixels(ticket.feed.size))
            except AWNetError as fault:
                error = fault
            except Exception:  # a fault of ours: the request fails, the worker and its neighbours live on
                log.exception("decoding failed in an unforeseen way")
                error = AWNetError("something went wrong with this image")
            else:
                ready.append(part)
                times.append((started, time.monotonic()))
                continue
            self._post(batch, _Piece([part], [(started, time.monotonic())], error))
        return images, ready, times

    def _post(self, batch: Batch[_Ticket], piece: _Piece | None) -> None:
        self.loop.call_soon_threadsafe(self._deliver, batch.parts[0][0].feed, piece)

    # The event loop's thread again.

    def _deliver(self, feed: Feed, piece: _Piece | None) -> None:
        if piece is not None:
            self._executions += 1
            execution = Execution(piece.started, piece.seconds, len(piece.parts), self._executions)
            if piece.outputs is not None:
                self._on_batch(len(piece.parts))
            for row, (ticket, index) in enumerate(piece.parts):
                started, ended = piece.decode[row]
                ticket.decode += ended - started
                if started < ticket.decode_started:
                    ticket.decode_started = started
                if ended > ticket.decode_ended:
                    ticket.decode_ended = ended
                if ticket.future.done():
                    continue
                if piece.outputs is None:
                    assert piece.error is not None
                    ticket.future.set_exception(piece.error)
                    continue
                ticket.rows[index] = (piece.outputs, row)
                if not ticket.executions or ticket.executions[-1] is not execution:
                    ticket.executions.append(execution)
                ticket.missing -= 1
                if not ticket.missing:
                    ticket.future.set_result(_signals(ticket))
        if feed.closing:
            feed.release_if_idle()


def _execute(
    images: list[NDArray[np.uint8]], parts: list[tuple[_Ticket, int]], decode: list[tuple[float, float]], alone: bool
) -> _Piece:
    """Run the model on images that are ready."""
    run = parts[0][0].feed.run
    assert run is not None, "a feed keeps its model while anything of it runs"
    piece = _Piece(parts, decode)
    piece.started, begun = time.monotonic(), clock.now()
    try:
        piece.outputs = run(np.stack(images), alone)
    except Exception as error:  # whatever a runtime raises: the request fails, the worker lives on
        log.exception("the model failed on a batch of %d", len(images))
        piece.error = EngineFault("the model failed on this request")
        piece.error.__cause__ = error
    piece.seconds = clock.now() - begun
    return piece


def _signals(ticket: _Ticket) -> Signals:
    rows = [row for row in ticket.rows if row is not None]
    (logits, p_type, omega), at = rows[0]
    if len(rows) == 1:
        logits, p_type, omega = logits[at : at + 1], p_type[at : at + 1], omega[at : at + 1]
    else:
        logits, p_type, omega = (np.stack([outputs[k][at] for outputs, at in rows]) for k in range(3))
    executions = ticket.executions
    inference = sum([execution.seconds for execution in executions])
    total = clock.now() - ticket.arrived
    # Several images are decoded side by side, so that the stages may add up to more than the time that passed.
    queue = max(0.0, total - ticket.decode - inference)
    timeline = Timeline(ticket.entered, ticket.decode_started, ticket.decode_ended, executions)
    return Signals(logits, p_type, omega, ticket.decode, queue, inference, timeline)
