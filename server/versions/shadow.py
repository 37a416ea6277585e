"""Runs the shadow: a second version that answers the same images, only to be compared; clients never wait for it.

The shadow runs after the client has been answered, on the pixels that were decoded for that answer, at low priority,
and on a bounded number of images; further images are dropped and counted, as are those in a mode that it lacks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..core import clock
from ..core.engine import Engine, Model, Runner, Signals, Terms
from ..core.images import ImageInput, PixelArray, Traits
from ..core.modes import Mode
from ..core.verdict import verdict_on
from ..errors import AWNetError, EngineFault, QueueFull
from .events import Events

log = logging.getLogger("awnet.shadow")

MAX_IMAGES = 16  # that it may be working on
DEADLINE_SECONDS = 10.0


class Held(Protocol):
    """An open version that is not closed between `hold` and `release`."""

    @property
    def runner(self) -> Runner: ...

    @property
    def model(self) -> Model: ...

    def hold(self) -> None: ...

    def release(self) -> None: ...


class ShadowComparer:
    """Runs a shadow beside the answering version, in the same mode, and compares class and verdict.

    Args:
        engine: says how many images are waiting.
        events: receives the outcomes.
        capacity: images that the engine accepts. The shadow uses a part of it, and none while half of it is in use.
    """

    def __init__(self, engine: Engine, events: Events, capacity: int) -> None:
        self._engine = engine
        self._events = events
        self._max_images = min(MAX_IMAGES, max(1, capacity // 4))
        self._max_waiting = capacity // 2
        self._images = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def infer(
        self, answering: Held, shadow: Held, images: Sequence[ImageInput], terms: Terms, mode: Mode
    ) -> Signals:
        """The answer of `answering`, as its runner gives or refuses it; `shadow` is asked afterwards."""
        cached = [_CachedImage(image) for image in images]
        try:
            signals = await answering.runner.infer(cached, terms, mode)
        except QueueFull:
            if not self._tasks:
                raise
            # The shadow must not cost a client its answer: its room in the queue is given back first.
            await self.stop()
            signals = await answering.runner.infer(cached, terms, mode)
        self._begin(answering.model, shadow, cached, signals, mode)
        return signals

    async def stop(self) -> None:
        """Drop what is being compared."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _begin(self, model: Model, shadow: Held, cached: Sequence[_CachedImage], signals: Signals, mode: Mode) -> None:
        count, size = len(cached), shadow.model.contract.preprocessing.size
        images = [
            PixelArray(image.cached, image.traits)
            for image in cached
            if image.cached is not None and image.cached.shape[-1] == size
        ]
        room = self._images + count <= self._max_images and self._engine.waiting() + count <= self._max_waiting
        if not room or len(images) < count or mode not in shadow.model.contract.modes:
            self._events.shadow(shadow.model, "dropped", count)
            return
        shadow.hold()
        self._images += count
        task = asyncio.create_task(self._compare(model, signals, shadow, images, mode))
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._images -= count
            if task.cancelled():
                self._events.shadow(shadow.model, "dropped", count)
            elif (error := task.exception()) is not None:
                log.error("the shadow failed in an unforeseen way", exc_info=error)
                self._events.shadow(shadow.model, "failed", count)
            shadow.release()

        task.add_done_callback(done)

    async def _compare(
        self, model: Model, signals: Signals, shadow: Held, images: Sequence[PixelArray], mode: Mode
    ) -> None:
        count = len(images)
        try:
            other = await shadow.runner.infer(images, Terms(clock.now() + DEADLINE_SECONDS, "low"), mode)
            if not (other.finite() and signals.finite()):
                raise EngineFault("an answer is not finite")
        except AWNetError as error:
            self._events.shadow(shadow.model, "dropped" if isinstance(error, QueueFull) else "failed", count)
            return
        self._events.shadow(shadow.model, "compared", count)
        classes = np.count_nonzero(
            np.take(model.contract.labels, signals.logits.argmax(axis=1))
            != np.take(shadow.model.contract.labels, other.logits.argmax(axis=1))
        )
        # Each version judges by the domain that it counts the image in.
        mine, theirs = model.contract.domains, shadow.model.contract.domains
        verdicts = sum(
            verdict_on(one, image.traits, mine) != verdict_on(another, image.traits, theirs)
            for one, another, image in zip(
                signals.p_type[:, 0].tolist(), other.p_type[:, 0].tolist(), images, strict=True
            )
        )
        if classes:
            self._events.disagreement(shadow.model, "class", int(classes))
        if verdicts:
            self._events.disagreement(shadow.model, "verdict", verdicts)


class _CachedImage:
    """An image that keeps its decoded pixels, so that they are decoded once."""

    __slots__ = ("_image", "cached")

    def __init__(self, image: ImageInput) -> None:
        self._image = image
        self.cached: NDArray[np.uint8] | None = None

    @property
    def traits(self) -> Traits:
        return self._image.traits

    def pixels(self, size: int) -> NDArray[np.uint8]:
        self.cached = self._image.pixels(size)
        return self.cached
