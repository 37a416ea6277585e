"""Sends items from a thread of its own: whoever puts them never waits, and what does not fit is dropped and counted."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Result = Literal["sent", "failed", "dropped"]

log = logging.getLogger("awnet.telemetry")


class Sender(Generic[T]):
    """A bounded line of items, and the thread that sends them.

    Args:
        name: of the thread.
        send: (items in their order) -> whether they arrived; may take its time.
        count: told of each item's result, on any thread.
        capacity: items that may wait; further ones are dropped.
        batch: most items at a time; so many are sent at once.
        every_seconds: that fewer wait.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[Sequence[T]], bool],
        count: Callable[[Result, int], None],
        *,
        capacity: int,
        batch: int,
        every_seconds: float,
    ) -> None:
        self._send, self._count = send, count
        self._capacity, self._batch, self._every = capacity, batch, every_seconds
        self._waiting: deque[T] = deque()
        self._under_way = 0
        self._changed = threading.Condition()
        self._ending = False
        self._ended = threading.Event()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def put(self, item: T) -> None:
        """Send `item` soon, or drop it."""
        with self._changed:
            fits = len(self._waiting) < self._capacity and not self._ending
            if fits:
                self._waiting.append(item)
                if len(self._waiting) >= self._batch:
                    self._changed.notify()
        if not fits:
            self._count("dropped", 1)

    def close(self, seconds: float) -> int:
        """Send what waits, for so long at most. Returns how many items have not arrived by then."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._ended.wait(seconds)
        with self._changed:
            left, under_way = len(self._waiting), self._under_way
            self._waiting.clear()
        self._count("dropped", left)
        return left + under_way

    def _run(self) -> None:
        ending = False
        while not ending:
            with self._changed:
                self._changed.wait_for(lambda: self._ending or len(self._waiting) >= self._batch, self._every)
                items = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
                self._under_way = len(items)
                ending = self._ending and not self._waiting
            if items:
                try:
                    arrived = self._send(items)
                except Exception:
                    log.exception("telemetry could not be sent")
                    arrived = False
                self._count("sent" if arrived else "failed", len(items))
        self._under_way = 0
        self._ended.set()
