"""The clock of deadlines: it stands still while the process does.

A process may be stopped (SIGSTOP, a debugger, a frozen cgroup), or its machine be paused or moved; `time.monotonic`
goes on then, and all deadlines would have passed at once although nobody was late: clients who waited would be refused,
and whoever was about to send would be cut off. (A machine that sleeps stops `time.monotonic` on Linux.) So the event
loop leaves a mark four times a second. Whoever reads the clock, on any thread, and finds the last mark much too old
knows that the process stood still, or that its loop did, which is no fault of a client either.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

MARK_SECONDS = 0.25
LATE_SECONDS = 1.0  # a loop that is busy, or a machine that is, is late by less

log = logging.getLogger("awnet")


class Clock:
    """Seconds, monotonic, without those for which the process stood still.

    Args:
        monotonic: the seconds that go on.

    Attributes:
        stood_still: how long it did so far, seconds; never more than it really did.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._marked = 0.0
        self._latest = math.inf  # when the next mark must be there; there are none before `keep`
        self._keepers = 0
        self._told = 0.0  # of these seconds
        self.stood_still = 0.0

    def now(self) -> float:
        while True:
            before, read = self.stood_still, self._monotonic()
            if read > self._latest:
                self._count(read)
            elif before == self.stood_still:
                return read - before

    def mark(self) -> None:
        """The process runs. Logs for how long it did not since the last mark."""
        self.now()
        with self._lock:
            self._marked = self._monotonic()
            self._latest = self._marked + MARK_SECONDS + LATE_SECONDS
        if self.stood_still > self._told:
            log.warning("the process stood still for %.1f s; no deadline counts that", self.stood_still - self._told)
            self._told = self.stood_still

    def _count(self, read: float) -> None:
        with self._lock:
            if read > self._latest:  # no other thread was faster
                self.stood_still += read - self._marked - MARK_SECONDS
                self._marked, self._latest = read, read + MARK_SECONDS + LATE_SECONDS

    async def keep(self) -> None:
        """Leave marks until cancelled."""
        self._keepers += 1
        try:
            while True:
                self.mark()
                await asyncio.sleep(MARK_SECONDS)
        finally:
            self._keepers -= 1
            if not self._keepers:
                self._latest = math.inf

    async def within(self, deadline: float, work: asyncio.Future[T]) -> T:
        """What comes of `work`, which is cancelled at the deadline. Raises TimeoutError then."""
        try:
            while not work.done():
                left = deadline - self.now()
                if left <= 0:
                    raise TimeoutError
                await asyncio.wait([work], timeout=left)
            return work.result()
        finally:
            work.cancel()


_clock = Clock()  # of this process
now, keep, within = _clock.now, _clock.keep, _clock.within


def stood_still() -> float:
    """For how long this process has done so, seconds."""
    now()
    return _clock.stood_still
