"""A runner whose executions happen in other processes: decodes images here, sends them, retries at another address.

Knows no protocol: the engine executes (`Host.call`), the balancer chooses the address.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...core import clock
from ...core.engine import Execution, Model, Outputs, Signals, Terms, Timeline
from ...core.images import ImageInput
from ...core.modes import Mode
from ...core.trace import new_span_id
from ...errors import AWNetError, DeadlineExceeded, EngineFault, EngineUnavailable
from .balancer import Address, Balancer, Key

MAX_SECONDS = 60.0  # of a request that has no deadline
WARM_SECONDS = 20.0  # of one batch that warms
NOTHING: Mapping[str, str] = MappingProxyType({})

log = logging.getLogger("awnet.triton")


class Description(NamedTuple):
    """The answer of an address about one version."""

    key: Key
    model: Model
    max_batch: int  # images in one request


class Decoders:
    """Threads that decode images."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="awnet-decode")

    async def decode(self, image: ImageInput, size: int) -> tuple[NDArray[np.uint8], float]:
        """Pixels [3,size,size], and the seconds that they took."""
        job, loop = functools.partial(_pixels, image, size), asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, job)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class Host(Protocol):
    """The interface of the engine for its runners."""

    balancer: Balancer
    decoders: Decoders

    def admit(self, images: int, anyway: bool = False) -> None:
        """Count a request in. Raises QueueFull, unless it is let in `anyway`."""

    def dismiss(self, images: int) -> None:
        """Count it out."""

    async def call(
        self,
        address: Address,
        key: Key,
        model: Model,
        mode: Mode,
        images: NDArray[np.uint8],
        seconds: float,
        metadata: Mapping[str, str] = ...,
    ) -> Outputs:
        """Execute at `address`, which has to answer within `seconds`; it is sent `metadata`, beside that of every call.

        Raises:
            EngineUnavailable: nothing was executed.
            DeadlineExceeded, EngineFault.
        """

    def forget(self, runner: RemoteRunner) -> None:
        """It is closed."""


class RemoteRunner:
    """One version of a model, at every address that serves it."""

    def __init__(self, host: Host, described: Description) -> None:
        self.key = described.key
        self._host = host
        self._model = described.model
        self._max_batch = described.max_batch
        self._pending = 0
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def model(self) -> Model:
        return self._model

    async def warm(self) -> None:
        """Run batches of 1, 2, 4, ... images in each mode at every address. Raises EngineFault where none can."""
        size, balancer = self._model.contract.preprocessing.size, self._host.balancer
        peers = [peer for peer in balancer.addresses if self.key in peer.serves]

        async def warm_one(peer: Address) -> None:
            for mode in self._model.contract.modes:
                for images in (2**power for power in range(self._max_batch.bit_length())):
                    await self._call(peer, mode, np.zeros((images, 3, size, size), np.uint8), WARM_SECONDS)

        results = await asyncio.gather(*(warm_one(peer) for peer in peers), return_exceptions=True)
        if not any(result is None for result in results):
            raise EngineFault(f"no address could be warmed for {self.key}")
        for peer, result in zip(peers, results, strict=True):
            if result is not None:
                log.warning("%s could not be warmed for %s: %s", peer.url, self.key, result)
                balancer.withdraw(peer, self.key)

    async def infer(self, images: Sequence[ImageInput], terms: Terms | None = None, mode: Mode = "auto") -> Signals:
        """Decode here, execute at the least loaded address, elsewhere where that one executed nothing."""
        terms, count = terms or Terms(), len(images)
        if self._closed:
            raise EngineUnavailable("this version is not served any more")
        if terms.remaining() <= 0:
            raise DeadlineExceeded("there was no time left for this request")
        self._host.admit(count, terms.admitted)
        self._pending += count
        self._idle.clear()
        until = min(terms.deadline, clock.now() + MAX_SECONDS)
        try:
            while True:
                before = clock.stood_still()
                try:
                    async with asyncio.timeout(until - clock.now()):
                        return await self._infer(images, terms, mode)
                except (TimeoutError, DeadlineExceeded) as late:
                    # Where this process stood still, a call ends before its time, and the engine may be asked again.
                    if clock.stood_still() == before or clock.now() >= until:
                        if isinstance(late, DeadlineExceeded):
                            raise
                        raise DeadlineExceeded("the request was not answered in time") from None
        finally:
            self._host.dismiss(count)
            self._pending -= count
            if not self._pending:
                self._idle.set()

    async def close(self) -> None:
        """Answer what was accepted; the model stays where it is."""
        self._closed = True
        await self._idle.wait()
        self._host.forget(self)

    async def _infer(self, images: Sequence[ImageInput], terms: Terms, mode: Mode) -> Signals:
        started = time.monotonic()
        size, decoders = self._model.contract.preprocessing.size, self._host.decoders
        decoded = await asyncio.gather(*(decoders.decode(p, size) for p in images), return_exceptions=True)
        decode_ended = time.monotonic()
        for result in decoded:  # of several bad images the first is named
            if isinstance(result, BaseException):
                raise result
        batch = np.stack([pixels for pixels, _ in decoded])  # type: ignore[misc]
        parts = [batch[first : first + self._max_batch] for first in range(0, len(batch), self._max_batch)]
        if len(parts) == 1:
            (logits, p_type, omega), execution = await self._execute(batch, terms, mode)
            executions = [execution]
        else:
            with _first_error():
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._execute(part, terms, mode)) for part in parts]
            answers = [task.result() for task in tasks]
            logits, p_type, omega = (np.concatenate(rows) for rows in zip(*(a for a, _ in answers), strict=True))
            executions = [execution for _, execution in answers]
        inference = max(execution.seconds for execution in executions)
        decode = sum(seconds for _, seconds in decoded)  # type: ignore[misc]
        queue = max(0.0, time.monotonic() - started - inference - decode)
        timeline = Timeline(started, started, decode_ended, executions)
        return Signals(logits, p_type, omega, decode, queue, inference, timeline)

    async def _execute(self, images: NDArray[np.uint8], terms: Terms, mode: Mode) -> tuple[Outputs, Execution]:
        """Outputs, and the time from sending to the answer: the network and the engine's own queue included."""
        balancer, tried = self._host.balancer, set[Address]()
        while True:
            peer = await balancer.acquire(self.key, len(images), terms.priority, tried)
            sent, epoch, span_id = time.monotonic(), peer.epoch, new_span_id()
            metadata = terms.trace.headers(span_id) if terms.trace else {}
            try:
                outputs = await self._call(peer, mode, images, terms.remaining(), metadata)
                execution = Execution(sent, time.monotonic() - sent, len(images), span_id=span_id)
                if peer.epoch != epoch:
                    # The connection changed: the answer counts once the address has passed the self-test again.
                    await peer.settled.wait()
                    if peer.state != "up" or self.key not in peer.serves:
                        raise EngineFault("the engine went away during this request")
                return outputs, execution
            except EngineUnavailable:
                tried.add(peer)  # nothing was executed there: another may, once
            finally:
                balancer.release(peer, len(images))

    async def _call(
        self,
        address: Address,
        mode: Mode,
        images: NDArray[np.uint8],
        seconds: float,
        metadata: Mapping[str, str] = NOTHING,
    ) -> Outputs:
        most = min(seconds, MAX_SECONDS)
        return await self._host.call(address, self.key, self._model, mode, images, most, metadata)


class At:
    """A version at one address, past all queues: for self-tests."""

    def __init__(self, host: Host, address: Address, described: Description) -> None:
        self.model = described.model
        self._call = functools.partial(host.call, address, described.key, described.model)

    async def infer(self, images: Sequence[ImageInput], terms: Terms | None = None, mode: Mode = "auto") -> Signals:
        size = self.model.contract.preprocessing.size
        batch = np.stack([image.pixels(size) for image in images])
        logits, p_type, omega = await self._call(mode, batch, (terms or Terms()).remaining())
        return Signals(logits, p_type, omega, 0.0, 0.0, 0.0)

    async def warm(self) -> None: ...

    async def close(self) -> None: ...


def _pixels(image: ImageInput, size: int) -> tuple[NDArray[np.uint8], float]:
    started = time.perf_counter()
    try:
        pixels = image.pixels(size)
    except AWNetError:
        raise
    except Exception as error:  # a fault of ours: this request fails, its neighbours live on
        log.exception("decoding failed in an unforeseen way")
        raise AWNetError("something went wrong with this image") from error
    return pixels, time.perf_counter() - started


@contextlib.contextmanager
def _first_error() -> Iterator[None]:
    """One error in place of a task group's group of them."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
