"""Decodes what is not cheap in processes of its own, which can be killed; says no before the work is too much.

The images of a request are read (their structure, see `codecs`) before anything waits for them. What is cheap by its
structure, at the worst that its bytes could make of it, is left to the engine's threads. Anything else is decoded by a
`DecodePool` before the request enters the engine's queue, so that no thread of an engine ever waits for a decoder.

Pixels are the unit of everything here: of limits, of the room that waits, and of fairness, in which a client's second
large image comes after everybody else's first.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ..errors import (
    AWNetError,
    DeadlineExceeded,
    ImageError,
    ImageTooLarge,
    MissingImage,
    QueueFull,
    Unavailable,
    UnsupportedMedia,
)
from .codecs.child import REPLY, REQUEST, received
from .codecs.decode import Decoded
from .codecs.file import UNUSUAL, ImageFile
from .images import EncodedImage
from .programs import program

CHEAP_COST = 500_000  # pixels, some 5 ms: what a request may leave to the engine's threads, all its images together
INLINE_BYTES = 64 << 10  # of a request: more is read on another thread than the event loop's
BYTE_WEIGHT = 2  # pixels that a byte counts while it waits
GRACE_SECONDS = 0.25  # a decode that nobody waits for any more may take so long, which is less than a new process costs
MAX_SECONDS = 60.0  # of a request that has no deadline
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSYS)

_Timed = tuple[Decoded, float]

log = logging.getLogger("awnet.decoding")


class _Job:
    """One image in line; `weight` is what it takes of the room, `cost` what its client pays for it."""

    __slots__ = ("child", "client", "cost", "data", "future", "size", "waits", "weight")

    def __init__(self, data: bytes, size: int, cost: int, weight: int, client: object) -> None:
        self.data, self.size, self.cost, self.weight, self.client = data, size, cost, weight, client
        self.future: asyncio.Future[_Timed] = asyncio.get_running_loop().create_future()
        self.waits = True
        self.child: _Child | None = None  # that decodes it


class _Child:
    """A process that decodes; its methods are called on threads, `kill` anywhere."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        """Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            arguments = [str(theirs.fileno()), str(seconds), str(max_bytes)]
            self._process = subprocess.Popen(
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
        max_bytes: memory of a process.
    """

    def __init__(self, *, workers: int, seconds: float, room: int, max_bytes: int) -> None:
        self._workers = workers
        self._seconds = seconds
        self._room = room
        self._max_bytes = max_bytes
        self._line: list[tuple[float, int, _Job]] = []  # by virtual time; also what does not wait any more
        self._order = itertools.count()
        self._held: dict[object, int] = {}  # weight by client, of what waits or runs
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
        return sum(job.waits for _, _, job in self._line) + len(self._running)

    async def decode(
        self,
        images: Sequence[tuple[bytes, int, int]],
        size: int,
        deadline: float,
        client: object = None,
        each: bool = False,
    ) -> list[_Timed | ImageError]:
        """All images of one request, or none.

        Args:
            images: of each the file, what it decodes to and what it costs, in pixels.
            size: side of the result.
            deadline: on `time.monotonic`.
            client: whose share it counts against.
            each: an image that cannot be decoded leaves its ImageError in its place, and costs the others nothing.

        Raises:
            QueueFull: no room for them; nothing was done.
            DeadlineExceeded: the deadline passed.
            ImageError: of an image, whose place among `images` it has.
            Unavailable: no process can be had.
        """
        jobs = [_Job(data, size, cost, pixels + BYTE_WEIGHT * len(data), client) for data, pixels, cost in images]
        self._enter(jobs)
        try:
            async with asyncio.timeout(min(deadline - time.monotonic(), MAX_SECONDS)):
                results = await asyncio.gather(*(job.future for job in jobs), return_exceptions=each)
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

    def _enter(self, jobs: Sequence[_Job]) -> None:
        if self._closed:
            raise Unavailable("the server is leaving")
        client, weight = jobs[0].client, sum(job.weight for job in jobs)
        held, mine = sum(self._held.values()), self._held.get(client, 0)
        # A client may take what it leaves to the others: alone it has half of the room, one of many less. Whatever is
        # larger is let in when nothing else is there, or it could never be answered.
        if held and mine + weight > self._room - held:
            raise QueueFull("too many pixels are waiting to be decoded; try again shortly")
        self._held[client] = mine + weight
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
        left = self._held[job.client] - job.weight
        if left:
            self._held[job.client] = left
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
                error = self._meaning(await on_thread(job.child.ended))
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

    def _meaning(self, status: int) -> AWNetError:
        """What the end of a process says about the image that it was decoding."""
        if status == -signal.SIGPROF:
            return ImageError(f"the image takes more than {self._seconds:g} seconds to decode")
        if -status in _FAULTS:
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


class Decoding:
    """What happens to the images of a request before an engine sees them.

    Args:
        pool: decodes what is not cheap.
        max_request_pixels: most that the images of one request may decode to.
    """

    def __init__(self, pool: DecodePool, max_request_pixels: int) -> None:
        self.pool = pool
        self._max_request_pixels = max_request_pixels

    async def prepare(
        self,
        images: Sequence[EncodedImage],
        size: int,
        deadline: float,
        client: object = None,
        refused: dict[int, AWNetError] | None = None,
    ) -> tuple[float, float]:
        """Read all images, and decode those that are not cheap.

        Args:
            images: not decoded yet.
            size: side of the result.
            deadline: on `time.monotonic`.
            client: whose share it counts against.
            refused: where it is given, all images are decoded here, and those that cannot be are put into it with the
                reason, by their index. Others of the request are then answered all the same.

        Returns:
            The seconds that decoding took, and those that were waited for it.

        Raises:
            ImageTooLarge: an image, or all together; ImageTooSmall, ImageError, UnsupportedMedia: an image.
            QueueFull, DeadlineExceeded, Unavailable: see `DecodePool.decode`.
        """
        started = time.perf_counter()
        if sum(len(image.data) for image in images) > INLINE_BYTES:
            files = await asyncio.to_thread(_admit, images, size, refused)
        else:
            files = _admit(images, size, refused)
        most, pixels = self._max_request_pixels, [file.decoded_pixels(size) for _, file in files]
        if sum(pixels) > most and len(files) > 1:
            raise ImageTooLarge(f"the images have {sum(pixels)} pixels together; a request may have {most}")
        left, cheap, apart, jobs = CHEAP_COST, [], [], []
        for (image, file), count in zip(files, pixels, strict=True):
            cost = file.cost(size)
            if cost <= left:
                left -= cost
                cheap.append(image)
            else:
                apart.append(image)
                jobs.append((image.data, count, cost))
        seconds = 0.0
        if refused is not None and cheap:
            seconds = await asyncio.to_thread(_decode, cheap, size, refused)
        elif not apart:
            return 0.0, 0.0
        if apart:
            seconds += await self._decode_apart(apart, jobs, size, deadline, client, refused)
        return seconds, time.perf_counter() - started

    async def _decode_apart(
        self,
        images: Sequence[EncodedImage],
        jobs: Sequence[tuple[bytes, int, int]],
        size: int,
        deadline: float,
        client: object,
        refused: dict[int, AWNetError] | None,
    ) -> float:
        """The seconds that decoding took, in other processes."""
        try:
            results = await self.pool.decode(jobs, size, deadline, client, each=refused is not None)
        except ImageError as error:
            if error.image is not None:
                error.at(images[error.image].index)
            raise
        seconds = 0.0
        for image, result in zip(images, results, strict=True):
            if isinstance(result, ImageError):
                _refuse(image, result, refused)
            else:
                image.accept(result[0], size)
                seconds += result[1]
        return seconds


def _admit(
    images: Sequence[EncodedImage], size: int, refused: dict[int, AWNetError] | None
) -> list[tuple[EncodedImage, ImageFile]]:
    """Those whose structure is good."""
    good = []
    for image in images:
        try:
            if refused is not None and not image.data:
                raise MissingImage("the file is empty")
            good.append((image, image.admit(size)))
        except (ImageError, MissingImage, UnsupportedMedia) as error:
            _refuse(image, error, refused)
    return good


def _decode(images: Sequence[EncodedImage], size: int, refused: dict[int, AWNetError]) -> float:
    """The seconds that it took. On a thread."""
    started = time.perf_counter()
    for image in images:
        try:
            image.pixels(size)
        except (ImageError, UnsupportedMedia) as error:
            _refuse(image, error, refused)
    return time.perf_counter() - started


def _refuse(image: EncodedImage, error: AWNetError, refused: dict[int, AWNetError] | None) -> None:
    """One image cannot be decoded: raise that, or note it."""
    error.at(image.index)
    if refused is None:
        raise error
    refused[image.index] = error.with_traceback(None)  # whose frames hold images
