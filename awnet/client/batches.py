"""Many images to requests of some, and what a refused request says about each of its images."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Sequence

from .errors import (
    DeadlineError,
    Error,
    ImageError,
    InputError,
    RateLimitedError,
    RejectedError,
    RequestError,
    TransportError,
    UnavailableError,
)
from .images import Encoded, ImageLike, encode
from .results import Result

MAX_BATCH_BYTES = 4 << 20  # of files in one request: half of what a server takes by default

# What is true of each image where none is to blame; of a rejection, that the policy leaves none of them.
_OF_EACH = RejectedError | UnavailableError | RateLimitedError | TransportError | DeadlineError

Answer = Callable[[Sequence[Encoded]], Awaitable[list[Result]]]


class Batches:
    """Puts images together, in their order.

    Args:
        most: images in one request.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError("a batch has at least one image")
        self._most = most
        self._images: list[Encoded | Result] = []
        self._bytes = 0

    def add(self, image: ImageLike) -> Iterator[list[Encoded | Result]]:
        """One more; gives what is to be sent now. Of an image that cannot be read the result is known already."""
        try:
            read: Encoded | Result = encode(image)
            size = len(read.data) if isinstance(read, Encoded) else 0
        except InputError as error:
            read, size = Result(name=os.fspath(image) if isinstance(image, str | os.PathLike) else None, error=error), 0
        if self._bytes + size > MAX_BATCH_BYTES:
            yield from self.rest()
        self._images.append(read)
        self._bytes += size
        if len(self._images) == self._most:
            yield from self.rest()

    def rest(self) -> Iterator[list[Encoded | Result]]:
        """What is left."""
        if self._images:
            images, self._images, self._bytes = self._images, [], 0
            yield images


async def each(images: Sequence[Encoded | Result], answer: Answer) -> list[Result]:
    """A result for each image, in their order, where `answer` takes several and refuses all of them for one.

    Raises what every other request would meet as well.
    """
    results = {place: image for place, image in enumerate(images) if isinstance(image, Result)}
    left = [[place for place in range(len(images)) if place not in results]]
    while left:
        places = left.pop()
        sent = [image for place in places if isinstance(image := images[place], Encoded)]
        if not sent:
            continue
        try:
            results.update(zip(places, await answer(sent), strict=True))
        except Error as error:
            blamed = _blamed(error, len(sent))
            if blamed is not None:
                results[places[blamed]] = Result(name=sent[blamed].name, error=error)
                left.append(places[:blamed] + places[blamed + 1 :])
            elif isinstance(error, RequestError) and error.status == 413:  # too much for one request
                left += [places[len(places) // 2 :], places[: len(places) // 2]]
            elif isinstance(error, _OF_EACH):
                results.update((place, Result(name=images[place].name, error=error)) for place in places)
            else:
                raise
    return [results[place] for place in range(len(images))]


def _blamed(error: Error, count: int) -> int | None:
    """Which of `count` images an error is about; None where it is about all of them."""
    if not isinstance(error, RequestError):
        return None
    if count == 1:
        return 0 if isinstance(error, ImageError) or error.image == 0 or error.status in (413, 415) else None
    return error.image if error.image is not None and error.image < count else None
