"""A bounded queue and dynamic batches: what is waiting runs together, and nothing waits to be joined.

Worker threads, as many as cores, take images from one queue, decode them and run the model, so that an image is
handed over once on its way in and once on its way out. All bookkeeping is done on the event loop's thread and needs
no lock.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from server.engine import Signals
from server.errors import AWNetError, EngineFault, QueueFull
from server.images import Picture

Outputs = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
Run = Callable[[NDArray[np.uint8], bool], Outputs]

log = logging.getLogger("awnet.batching")


class _Ticket:
    """One request: its pictures' rows as they come in, and the future that waits for all of them."""

    __slots__ = ("decode", "error", "future", "inference", "missing", "rows", "submitted")

    def __init__(self, count: int, future: asyncio.Future[Signals]) -> None:
        self.future = future
        self.rows: list[tuple[Outputs, int] | None] = [None] * count
        self.missing = count
        self.error: AWNetError | None = None
        self.decode = 0.0
        self.inference: dict[int, float] = {}  # seconds by execution: pictures of one request may share one
        self.submitted = time.perf_counter()


class _Item:
    """One picture of a request."""

    __slots__ = ("decode", "error", "index", "picture", "ticket")

    def __init__(self, ticket: _Ticket, index: int, picture: Picture) -> None:
        self.ticket = ticket
        self.index = index
        self.picture = picture
        self.decode = 0.0
        self.error: AWNetError | None = None


class Batcher:
    """Feeds `run` from a bounded queue. Made and used on the thread of a running event loop.

    Args:
        run: (images [N,3,size,size] uint8, alone) -> (logits, p_type, omega), called on worker threads, at the same
            time on several. `alone` says that no other work is there to share the cores with.
        size: side of the model's input, pixels.
        workers: threads.
        most: largest batch.
        capacity: images that may be accepted and unanswered.
        on_batch: told the size of each execution, on the event loop's thread.
    """

    def __init__(
        self,
        run: Run,
        *,
        size: int,
        workers: int,
        most: int,
        capacity: int,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._run = run
        self._size = size
        self._most = most
        self._capacity = capacity
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._pending = 0
        self._closed = False
        self._executions = 0
        self._idle = 0  # workers without work; guarded, for all of them change it
        self._guard = threading.Lock()
        self._threads = [threading.Thread(target=self._work, name=f"awnet-{i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def pending(self) -> int:
        """Images that were accepted and are not answered."""
        return self._pending

    async def submit(self, pictures: Sequence[Picture]) -> Signals:
        """Run one request. Raises QueueFull, EngineFault, or what decoding raises."""
        count = len(pictures)
        # A request larger than the whole queue is let in when nothing else is, or it could never be answered.
        if self._closed or (self._pending and self._pending + count > self._capacity):
            raise QueueFull(f"{self._pending} images are waiting; try again shortly")
        self._pending += count
        ticket = _Ticket(count, self._loop.create_future())
        for index, picture in enumerate(pictures):
            self._queue.put(_Item(ticket, index, picture))
        return await ticket.future

    async def close(self) -> None:
        """Answer what was accepted and end the threads."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    # Worker threads from here on.

    def _work(self) -> None:
        queue, guard = self._queue, self._guard
        while True:
            with guard:
                self._idle += 1
            first = queue.get()
            with guard:
                self._idle -= 1
                idle = self._idle
            if first is None:
                return
            batch = [first]
            # A fair share of what is waiting: the idle workers are about to take the rest.
            share = min(self._most, -(-(queue.qsize() + 1) // (idle + 1)))
            while len(batch) < share:
                try:
                    item = queue.get_nowait()
                except Empty:
                    break
                if item is None:
                    queue.put(None)  # a worker's call to end: it stays for the one after us
                    break
                batch.append(item)
            alone = len(batch) == 1 and idle == len(self._threads) - 1
            small = [item for item in batch if not item.picture.large]
            self._execute(small, alone)
            for item in batch:
                if item.picture.large:
                    # After the small ones, so that 48 ms of decoding hold up nobody who waits for 1.
                    self._execute([item], alone)

    def _execute(self, batch: list[_Item], alone: bool) -> None:
        images, ready = [], []
        for item in batch:
            if item.ticket.future.cancelled() or item.ticket.error is not None:
                continue  # nobody waits for it any more
            started = time.perf_counter()
            try:
                images.append(item.picture.pixels(self._size))
                ready.append(item)
            except AWNetError as error:
                item.error = error
            except Exception:  # a fault of ours: the request fails, the worker and its neighbours live on
                log.exception("decoding failed in an unforeseen way")
                item.error = AWNetError("something went wrong with this image")
            item.decode = time.perf_counter() - started
        outputs: Outputs | None = None
        seconds = 0.0
        if ready:
            started = time.perf_counter()
            try:
                outputs = self._run(np.stack(images), alone)
            except Exception as error:  # whatever a runtime raises: the request fails, the worker lives on
                log.exception("the model failed on a batch of %d", len(ready))
                fault = EngineFault("the model failed on this request")
                fault.__cause__ = error
                for item in ready:
                    item.error = fault
            seconds = time.perf_counter() - started
        if batch:
            self._loop.call_soon_threadsafe(self._deliver, batch, ready, outputs, seconds)

    # The event loop's thread again.

    def _deliver(self, batch: list[_Item], ready: list[_Item], outputs: Outputs | None, seconds: float) -> None:
        self._pending -= len(batch)
        self._executions += 1
        if outputs is not None:
            self._on_batch(len(ready))
            for row, item in enumerate(ready):
                item.ticket.rows[item.index] = (outputs, row)
                item.ticket.inference[self._executions] = seconds
        for item in batch:
            ticket = item.ticket
            ticket.missing -= 1
            ticket.decode += item.decode
            if item.error is not None and ticket.error is None:
                ticket.error = item.error
            if ticket.future.done():
                continue
            if ticket.error is not None:
                ticket.future.set_exception(ticket.error)
            elif ticket.missing == 0:
                ticket.future.set_result(_signals(ticket))


def _signals(ticket: _Ticket) -> Signals:
    rows = [row for row in ticket.rows if row is not None]
    if len(rows) == 1:
        outputs, at = rows[0]
        logits, p_type, omega = (output[at : at + 1] for output in outputs)
    else:
        logits, p_type, omega = (np.stack([outputs[k][at] for outputs, at in rows]) for k in range(3))
    inference = sum(ticket.inference.values())
    total = time.perf_counter() - ticket.submitted
    # Several pictures are decoded side by side, so that the stages may add up to more than the time that passed.
    queue = max(0.0, total - ticket.decode - inference)
    return Signals(logits, p_type, omega, ticket.decode, queue, inference)
