"""Processes that decode images and can be killed, and the line before them.

Pixels are the unit of the line: of the room in it, and of fairness, in which a client's second large image comes after
everybody else's first.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import logging
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from ..errors import AWNetError, DeadlineExceeded, ImageError, QueueFull, Unavailable
from . import clock
from .codecs.child import REPLY, REQUEST, received
from .codecs.decode import Decoded
from .codecs.file import UNUSUAL
from .engine import Terms
from .programs import program

BYTE_WEIGHT = 2  # pixels that a byte counts while it waits
GRACE_SECONDS = 0.25  # a decode that nobody waits for any more may take so long, which is less than a new process costs
MAX_SECONDS = 60.0  # of a request that has no deadline
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSYS)

# Why a process that decoded ended: nobody waits for its image any more, the image took too long, a fault of a decoder,
# or something else (memory, an operator).
DecoderEnd = Literal["given up", "too slow", "crashed", "killed"]

_Timed = tuple[Decoded, float]

log = logging.getLogger("awnet.decoding")


class _Job:
    """One image in line; `weight` is what it takes of the room, `cost` what its client pays for it."""

    __slots__ = ("child", "client", "cost", "data", "future", "given_up", "size", "waits", "weight")

    def __init__(self, data: bytes, size: int, cost: int, weight: int, client: object) -> None:
        self.data, self.size, self.cost, self.weight, self.client = data, size, cost, weight, client
        self.future: asyncio.Future[_Timed] = asyncio.get_running_loop().create_future()
        self.waits = True
        self.given_up = False  # and its process killed
        self.child: _Child | None = None  # that decodes it


class _Child:
    """A process that decodes; its methods are called on threads, `kill` anywhere."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        """Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            arguments = [str(theirs.fileno()), str(seconds), str(max_bytes)]
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, three numbers, no shell
                [*program(f"{__package__}.codecs.child"), *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._socket = ours

    def decode(self, data: bytes, size: int) -> _Timed:
        """Pixels, and the seconds that they took.

        Raises ImageError; EOFError, ConnectionError where the process has ended.
        """
        started = time.perf_counter()
        self._socket.sendall(REQUEST.pack(len(data), size))
        self._socket.sendall(data)
        refused, unusual, length = REPLY.unpack(received(self._socket, REPLY.size))
        payload = received(self._socket, length)
        if refused:
            raise ImageError(payload.decode())
        decoded = Decoded(payload, UNUSUAL[unusual - 1] if unusual else None)
        return decoded, time.perf_counter() - started

    def alive(self) -> bool:
        """Whether it has not ended, while it had nothing to do."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()

    def ended(self) -> int:
        """Wait for its end. Returns the status, negative where a signal ended it."""
        self._socket.close()
        return self._process.wait()


class DecodePool:
    """Up to `workers` processes, started when first needed and replaced when they end.

    Args:
        workers: processes at most.
        seconds: CPU time of one image; whatever takes longer is refused.
        room: pixels that may wait, a byte of a file counts for BYTE_WEIGHT of them.
        capacity: images that may wait or run, those `elsewhere` included.
        max_bytes: memory of a process.
        elsewhere: images that wait or run behind this pool.
        on_end: called with why, whenever a process has ended or was ended.
    """

    def __init__(
        self,
        *,
        workers: int,
        seconds: float,
        room: int,
        max_bytes: int,
        capacity: int = 1 << 30,
        elsewhere: Callable[[], int] = lambda: 0,
        on_end: Callable[[DecoderEnd], None] = lambda why: None,
    ) -> None:
        self._workers = workers
        self._seconds = seconds
        self.room = room
        self._capacity = capacity
        self._elsewhere = elsewhere
        self._on_end = on_end
        self._max_bytes = max_bytes
        self._line: list[tuple[float, int, _Job]] = []  # by virtual time; also what does not wait any more
        self._order = itertools.count()
        self._held: dict[object, tuple[int, int]] = {}  # (weight, images) by client, of what waits or runs
        self._finish: dict[object, float] = {}  # virtual time at which a flow will have had its share
        self._now = 0.0  # virtual time: that of the image begun last
        self._idle: list[_Child] = []
        self._running: set[_Job] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="awnet-decode")
        self._closed = False

    @property
    def waiting(self) -> int:
        """Images that wait or run."""
        return sum(images for _, images in self._held.values())

    @property
    def held(self) -> int:
        """Pixels of them, as `room` counts them."""
        return sum(weight for weight, _ in self._held.values())

    @property
    def busy(self) -> int:
        """Processes that decode."""
        return len(self._running)

    async def decode(
        self,
        images: Sequence[tuple[bytes, int, int]],
        size: int,
        terms: Terms,
        client: object = None,
        each: bool = False,
    ) -> list[_Timed | ImageError]:
        """All images of one request, or none.

        Args:
            images: of each the file, what it decodes to and what it costs, in pixels.
            size: side of the result.
            terms: of the request.
            client: whose share it counts against.
            each: an image that cannot be decoded leaves its ImageError in its place, and costs the others nothing.

        Raises:
            QueueFull: no room for them; nothing was done.
            DeadlineExceeded: the deadline passed.
            ImageError: of an image, whose place among `images` it has.
            Unavailable: no process can be had.
        """
        jobs = [_Job(data, size, cost, pixels + BYTE_WEIGHT * len(data), client) for data, pixels, cost in images]
        self._enter(jobs, terms.priority == "low")
        try:
            deadline = min(terms.deadline, clock.now() + MAX_SECONDS)
            results = await clock.within(
                deadline, asyncio.gather(*(job.future for job in jobs), return_exceptions=each)
            )
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the image was decoded") from None
        finally:
            for job in jobs:
                self._abandon(job)
        kept: list[_Timed | ImageError] = []
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ImageError):
                raise result
            kept.append(result)
        return kept

    def _enter(self, jobs: Sequence[_Job], low: bool) -> None:
        if self._closed:
            raise Unavailable("the server is leaving")
        client, weight, count = jobs[0].client, sum(job.weight for job in jobs), len(jobs)
        weights, images = self._held.get(client, (0, 0))
        # A client may take what it leaves to the others: alone it has half of the room, one of many less. Whatever is
        # larger is let in when nothing else is there, or it could never be answered.
        if self._held:
            if weights + weight > self.room - self.held:
                raise QueueFull("too many pixels are waiting to be decoded; try again shortly")
            waiting = self.waiting + self._elsewhere()
            if images + count > (self._capacity // 2 if low else self._capacity) - waiting:
                raise QueueFull(f"{waiting} images are waiting; try again shortly")
        self._held[client] = weights + weight, images + count
        for place, job in enumerate(jobs):
            # Fair queueing by start times: flows are clients and, because many clients may share an address, within
            # one of them images of one order of magnitude.
            flow = (client, job.cost.bit_length() // 3)
            begin = max(self._now, self._finish.get(flow, 0.0))
            self._finish[flow] = begin + job.cost
            heapq.heappush(self._line, (begin, next(self._order), job))
            job.future.add_done_callback(functools.partial(_placed, place))
        self._pump()

    def _leave(self, job: _Job) -> None:
        weights, images = self._held[job.client]
        if images > 1:
            self._held[job.client] = weights - job.weight, images - 1
        else:
            del self._held[job.client]
        if not self._held:
            self._finish.clear()
            self._now = 0.0

    def _abandon(self, job: _Job) -> None:
        """Nobody waits for it any more: out of the line, or given up while it runs."""
        job.future.cancel()
        if job.waits:
            job.waits = False
            self._leave(job)
        elif job in self._running:
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self._give_up, job)

    def _give_up(self, job: _Job) -> None:
        if job in self._running and job.child is not None:
            job.given_up = True
            job.child.kill()

    def _pump(self) -> None:
        """Begin what can be begun."""
        while self._line and len(self._running) < self._workers:
            begin, _, job = heapq.heappop(self._line)
            if not job.waits:
                continue
            job.waits = False
            self._now = max(self._now, begin)
            self._running.add(job)
            task = asyncio.create_task(self._run(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, job: _Job) -> None:
        on_thread = functools.partial(asyncio.get_running_loop().run_in_executor, self._threads)
        error: AWNetError | None = None
        result = None
        try:
            while self._idle and job.child is None:
                child = self._idle.pop()
                if child.alive():
                    job.child = child
            if job.child is None:
                job.child = await on_thread(_Child, self._seconds, self._max_bytes)
            if self._closed:
                job.child.kill()
            try:
                result = await on_thread(job.child.decode, job.data, job.size)
            except (EOFError, ConnectionError):
                job.child.kill()  # it has closed its socket at least
                error = self._meaning(await on_thread(job.child.ended), job.given_up)
                job.child = None
        except OSError as failure:
            log.error("no decoding process can be started: %s", failure)
            error = Unavailable("images of this size cannot be decoded at the moment")
        except AWNetError as refusal:
            error = refusal
        self._running.discard(job)
        self._leave(job)
        if job.child is not None:
            self._idle.append(job.child)
        if job.future.done():
            pass
        elif result is not None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error or Unavailable("the image was not decoded"))
        self._pump()

    def _meaning(self, status: int, given_up: bool) -> AWNetError:
        """What the end of a process says about the image that it was decoding."""
        why: DecoderEnd = "given up" if given_up else "killed"
        if status == -signal.SIGPROF:
            why = "too slow"
        elif -status in _FAULTS:
            why = "crashed"
        self._on_end(why)
        if why == "too slow":
            return ImageError(f"the image takes more than {self._seconds:g} seconds to decode")
        if why == "crashed":
            log.error("a decoder was ended by %s", signal.Signals(-status).name)
            return ImageError("the image cannot be decoded")
        return Unavailable("the process that decoded the image has ended")

    async def close(self) -> None:
        """Give up what is left, and end the processes."""
        self._closed = True
        for _, _, job in self._line:
            self._abandon(job)
        for job in self._running:
            job.future.cancel()
            self._give_up(job)
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        while self._idle:
            child = self._idle.pop()
            child.kill()
            await asyncio.to_thread(child.ended)
        self._threads.shutdown(wait=False)

    def kill(self) -> None:
        """End the processes at once; whoever waits for them gets no answer."""
        self._closed = True
        for child in [*self._idle, *(job.child for job in self._running if job.child is not None)]:
            child.kill()


def _placed(place: int, future: asyncio.Future[_Timed]) -> None:
    """An error of an image is about the image at this place."""
    if not future.cancelled():
        error = future.exception()
        if isinstance(error, ImageError):
            error.at(place)
