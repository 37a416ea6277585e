"""The clock of deadlines: it stands still while the process does.

A process may be stopped (SIGSTOP, a debugger, a frozen cgroup), or its machine be paused or moved; `time.monotonic`
goes on then, and all deadlines would have passed at once although nobody was late: clients who waited would be refused,
and whoever was about to send would be cut off. (A machine that sleeps stops `time.monotonic` on Linux.) So the event
loop leaves a mark four times a second. Whoever reads the clock, on any thread, leaves one, too; and who finds the last
one much too old knows that the process stood still. A loop that was only busy has had processor time meanwhile, and
that counts: who can keep it busy must not win time by it.
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
TOO_LONG_SECONDS = MARK_SECONDS + LATE_SECONDS

log = logging.getLogger("awnet")


class Clock:
    """Seconds that never go back, without those for which the process stood still.

    Args:
        monotonic: the seconds that go on.
        busy: processor time of the thread that keeps the clock, seconds; None: as the system tells it.

    Attributes:
        stood_still: how long it did so far, seconds; never more than it really did.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, busy: Callable[[], float] | None = None
    ) -> None:
        self._monotonic = monotonic
        self._given_busy = busy
        self._busy = busy or (lambda: 0.0)
        self._lock = threading.Lock()
        self._marked = math.inf  # when the last mark was left; there are none before `keep`
        self._busy_then = 0.0
        self._read = -math.inf  # when somebody last read the clock
        self._keepers = 0
        self._told = 0.0  # of these seconds
        self.stood_still = 0.0

    def now(self) -> float:
        while True:
            before, read = self.stood_still, self._monotonic()
            if read - self._read > TOO_LONG_SECONDS and read - self._marked > TOO_LONG_SECONDS:
                self.mark()
            elif before == self.stood_still:
                self._read = read
                return read - before

    def mark(self) -> None:
        """The process runs. Counts how long it did not."""
        with self._lock:
            read, busy = self._monotonic(), self._busy()
            gap = read - max(self._marked, self._read)
            if gap > TOO_LONG_SECONDS:
                self.stood_still += max(0.0, gap - MARK_SECONDS - (busy - self._busy_then))
            self._marked, self._busy_then = read, busy

    async def keep(self) -> None:
        """Leave marks until cancelled, and log for how long the process stood still."""
        self._keepers += 1
        self._busy = self._given_busy or _processor_time()
        self._busy_then = self._busy()
        try:
            while True:
                self.mark()
                self._tell()
                await asyncio.sleep(MARK_SECONDS)
        finally:
            self._keepers -= 1
            if not self._keepers:
                self._marked = math.inf

    def _tell(self) -> None:
        if self.stood_still > self._told:
            log.warning("the process stood still for %.1f s; no deadline counts that", self.stood_still - self._told)
            self._told = self.stood_still

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
            work.add_done_callback(_look_at)
            work.cancel()


def _look_at(work: asyncio.Future[T]) -> None:
    """Nobody waits for it any more: asyncio would log its failure, and to be cancelled is one of a `gather`."""
    if not work.cancelled():
        work.exception()


def _processor_time() -> Callable[[], float]:
    """That of the calling thread, seconds, for any thread to ask; 0 where the system does not tell."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return lambda: 0.0
    of_thread = time.pthread_getcpuclockid(threading.get_ident())

    def read() -> float:
        try:
            return time.clock_gettime(of_thread)
        except OSError:  # it has ended
            return 0.0

    return read


_clock = Clock()  # of this process
now, keep, within = _clock.now, _clock.keep, _clock.within


def stood_still() -> float:
    """For how long this process has done so, seconds."""
    now()
    return _clock.stood_still
