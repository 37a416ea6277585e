"""Decodes what is not cheap in processes of its own, which can be killed; says no before the work is too much.

The images of a request are read (their structure, see `codecs`) before anything waits for them. What is cheap by its
structure, at the worst that its bytes could make of it, is left to the engine's threads. Anything else is decoded by a
`DecodePool` before the request enters the engine's queue, so that no thread of an engine ever waits for a decoder. Who
finds no place is told so before anything is decoded: what the pool has let in, the engine's queue lets in as well.

A request whose images are small is decoded at once, on the event loop's thread, while others are in the engine: it
takes no longer than answering it. An engine's thread would give the interpreter lock away dozens of times while it
decodes an image, and wait for the event loop each time to get it back: five times as long as decoding takes, with a
core idle. Where nobody else is, nobody else wants the lock, and the engine's thread begins while the event loop works.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..errors import AWNetError, ImageError, ImageTooLarge, MissingImage, UnsupportedMedia
from .codecs.file import ImageFile
from .decode_pool import DecodePool
from .engine import Terms
from .images import EncodedImage

CHEAP_COST = 500_000  # pixels, some 5 ms: what a request may leave to the engine's threads, all its images together
SMALL_COST = 30_000  # pixels, some 0.3 ms: what is decoded on the event loop's thread, all images of a request together
IMAGE_COST = 10_000  # of that, for any image, however small: objects are made, and statistics of what the model sees
# Of a request: the structure of more is read on another thread than the event loop's. Four bytes may be a segment,
# which takes 0.6 us to read.
INLINE_BYTES = 8 << 10


class Prepared(NamedTuple):
    """What `Decoding.prepare` has done.

    Attributes:
        decode_seconds: that decoding took.
        waited_seconds: until it was done.
        admitted: images have waited for their turn in the pool, where places are counted.
    """

    decode_seconds: float = 0.0
    waited_seconds: float = 0.0
    admitted: bool = False


class Decoding:
    """What happens to the images of a request before an engine sees them.

    Args:
        pool: decodes what is not cheap.
        max_request_pixels: most that the images of one request may decode to.
        waiting: images in the engine.
    """

    def __init__(self, pool: DecodePool, max_request_pixels: int, waiting: Callable[[], int]) -> None:
        self.pool = pool
        self._waiting = waiting
        self._max_request_pixels = max_request_pixels

    async def prepare(
        self,
        images: Sequence[EncodedImage],
        size: int,
        terms: Terms,
        client: object = None,
        refused: dict[int, AWNetError] | None = None,
    ) -> Prepared:
        """Read all images, and decode those that are not cheap.

        Args:
            images: not decoded yet.
            size: side of the result.
            terms: of the request.
            client: whose share it counts against.
            refused: where it is given, all images are decoded here, and those that cannot be are put into it with the
                reason, by their index. Others of the request are then answered all the same.

        Raises:
            ImageTooLarge: an image, or all together; ImageTooSmall, ImageError, UnsupportedMedia: an image.
            QueueFull, DeadlineExceeded, Unavailable: see `DecodePool.decode`.
        """
        started = time.perf_counter()
        if sum([len(image.data) for image in images]) > INLINE_BYTES:
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
        small = not apart and CHEAP_COST - left + IMAGE_COST * len(cheap) <= SMALL_COST
        if small and (refused is not None or self._waiting()):
            seconds = _decode(cheap, size, refused)
        elif refused is not None and cheap:
            seconds = await asyncio.to_thread(_decode, cheap, size, refused)
        elif not apart:
            return Prepared()
        if apart:
            seconds += await self._decode_apart(apart, jobs, size, terms, client, refused)
        return Prepared(seconds, time.perf_counter() - started, bool(apart))

    async def _decode_apart(
        self,
        images: Sequence[EncodedImage],
        jobs: Sequence[tuple[bytes, int, int]],
        size: int,
        terms: Terms,
        client: object,
        refused: dict[int, AWNetError] | None,
    ) -> float:
        """The seconds that decoding took, in other processes."""
        try:
            results = await self.pool.decode(jobs, size, terms, client, each=refused is not None)
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


def _decode(images: Sequence[EncodedImage], size: int, refused: dict[int, AWNetError] | None) -> float:
    """The seconds that it took."""
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
