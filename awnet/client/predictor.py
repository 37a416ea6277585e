"""The interface that clients and models in this process have in common, for callers with an event loop and without.

Both ask for paths and get JSON: a client from a server, a model in this process from the server's application in it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import httpx

from .batches import Batches, each
from .errors import AnswerError, DeadlineError, Error, UnavailableError
from .images import Encoded, ImageLike, encode
from .loop import LoopThread
from .results import Result, parse

BATCH, CONCURRENCY = 8, 2
READY_SECONDS = 2.0
PREDICT = "predict"

SignalsLevel = Literal["none", "summary", "all"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a request says beside its images; None leaves it to the server. docs/api.md has each of them."""

    top_k: int | None = None
    signals: SignalsLevel | None = None
    model: str | None = None
    version: int | str | None = None
    mode: str | None = None
    priority: Literal["normal", "low"] | None = None

    def given(self) -> dict[str, str]:
        """Those that are given, as the parameters of a query."""
        return {name: str(value) for name in self.__slots__ if (value := getattr(self, name)) is not None}


class Request(NamedTuple):
    """What is asked of a server's application.

    Attributes:
        path: below the server's address.
        query: its parameters.
        kind: content type of `body`; None without one.
    """

    method: str
    path: str
    query: Mapping[str, str]
    kind: str | None = None
    body: bytes = b""

    def parameters(self, seconds: float) -> dict[str, str]:
        """The query, with the time that is left: a server need not go on with what nobody waits for any more."""
        left = {"timeout_ms": str(max(1, math.ceil(1000 * seconds)))} if self.path == PREDICT else {}
        return {**self.query, **left}

    @property
    def headers(self) -> dict[str, str]:
        """The content type."""
        return {} if self.kind is None else {"content-type": self.kind}


class AsyncPredictor(ABC):
    """Answers questions about images.

    Args:
        options: what every call asks for, unless it says otherwise.
        timeout: seconds that a call may take, unless it says otherwise.
    """

    def __init__(self, options: Options, timeout: float) -> None:
        self._options = options
        self._timeout = _positive(timeout)

    async def predict(self, image: ImageLike, *, timeout: float | None = None, **options: Any) -> Result:
        """As `Predictor.predict`."""
        encoded = await asyncio.to_thread(encode, image)
        return _only(await self.answer([encoded], timeout, options))

    async def predict_many(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        batch: int = BATCH,
        concurrency: int = CONCURRENCY,
        timeout: float | None = None,
        **options: Any,
    ) -> AsyncIterator[Result]:
        """As `Predictor.predict_many`; a plain `images` is iterated over on the event loop."""
        batches, pending = Batches(batch), deque[asyncio.Task[list[Result]]]()
        _concurrent(concurrency)
        try:
            async for image in _asynchronous(images):
                for part in await asyncio.to_thread(list, batches.add(image)):
                    pending.append(asyncio.create_task(self.answer_each(part, timeout, options)))
                while len(pending) > concurrency:
                    for result in await pending.popleft():
                        yield result
            for part in batches.rest():
                pending.append(asyncio.create_task(self.answer_each(part, timeout, options)))
            while pending:
                for result in await pending.popleft():
                    yield result
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def answer(
        self, images: Sequence[Encoded], timeout: float | None, options: Mapping[str, Any]
    ) -> list[Result]:
        """One request: a result for each image, some of which may hold errors. Raises an `Error` about all of them."""
        seconds = self._timeout if timeout is None else _positive(timeout)
        asked = replace(self._options, **options)
        kind, body = _body(images)
        try:
            document = await self._ask(Request("POST", PREDICT, asked.given(), kind, body), seconds)
        except UnavailableError as error:
            if error.slug == "deadline-exceeded":  # the server's clock was first
                raise DeadlineError(f"no answer within {seconds:g} seconds: {error.detail}") from error
            raise
        return parse(document, [image.name for image in images])

    async def answer_each(
        self, images: Sequence[Encoded | Result], timeout: float | None, options: Mapping[str, Any]
    ) -> list[Result]:
        """A result for each image. Raises an `Error` that every other image would meet as well."""
        return await each(images, lambda sent: self.answer(sent, timeout, options))

    async def ready(self) -> bool:
        """As `Predictor.ready`."""
        try:
            await self._ask(Request("GET", "v2/health/ready", {}), min(READY_SECONDS, self._timeout))
        except Error:
            return False
        return True

    async def model(self, name: str | None = None, version: int | str | None = None) -> dict[str, Any]:
        """As `Predictor.model`."""
        name, version = name or self._options.model, version or self._options.version
        query = {key: str(value) for key, value in (("name", name), ("version", version)) if value is not None}
        described = await self._ask(Request("GET", "model", query), self._timeout)
        if not isinstance(described, dict):
            raise AnswerError("the answer is not one of /model")
        return described

    @abstractmethod
    async def aclose(self) -> None:
        """Give back connections, threads and memory."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @abstractmethod
    async def _ask(self, asked: Request, timeout: float) -> Any:
        """The JSON that is answered within `timeout` seconds. Raises an `Error`."""


class Predictor:
    """An `AsyncPredictor` for callers without an event loop; several threads may use one at the same time."""

    def __init__(self, inner: AsyncPredictor, loop: LoopThread) -> None:
        self._inner = inner
        self._loop = loop

    def predict(self, image: ImageLike, *, timeout: float | None = None, **options: Any) -> Result:
        """The answer for one image.

        Args:
            image: a path, the bytes of a file, a binary file, a Pillow image, or uint8 [height, width, 3] RGB.
            timeout: seconds that it may take, retries included.
            options: of `Options`: top_k, signals, model, version, mode, priority.

        Raises an `Error`; `errors` says which.
        """
        return _only(self._loop.run(self._inner.answer([encode(image)], timeout, options)))

    def predict_many(
        self,
        images: Iterable[ImageLike],
        *,
        batch: int = BATCH,
        concurrency: int = CONCURRENCY,
        timeout: float | None = None,
        **options: Any,
    ) -> Iterator[Result]:
        """The answers for many images, in their order, while further ones are asked about.

        An image that cannot be read, or is refused, costs its neighbours nothing: its `Result.error` says why. So does
        that of each image of a request that was given up in the end. `images` is read no further than is needed.

        Args:
            batch: images of one request at most.
            concurrency: requests at the same time.
            timeout: seconds that one request may take, retries included.
            options: as in `predict`.

        Raises:
            AccessError, NotServedError, RequestError, ServerError, AnswerError: no other image would fare better.
        """
        batches, pending = Batches(batch), deque[concurrent.futures.Future[list[Result]]]()
        _concurrent(concurrency)
        try:
            for image in images:
                for part in batches.add(image):
                    pending.append(self._loop.start(self._inner.answer_each(part, timeout, options)))
                while len(pending) > concurrency:
                    yield from pending.popleft().result()
            for part in batches.rest():
                pending.append(self._loop.start(self._inner.answer_each(part, timeout, options)))
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def ready(self) -> bool:
        """Whether requests would be answered now; False, too, where nobody answers."""
        return self._loop.run(self._inner.ready())

    def model(self, name: str | None = None, version: int | str | None = None) -> dict[str, Any]:
        """What stands behind the answers, as `GET /model` describes it. Raises an `Error`."""
        return self._loop.run(self._inner.model(name, version))

    def close(self) -> None:
        """Give back connections, threads and memory."""
        if not self._loop.closed:
            with suppress(RuntimeError):  # a process that was forked has nothing to give back
                self._loop.run(self._inner.aclose())
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _only(results: Sequence[Result]) -> Result:
    """The one result. Raises its error."""
    [result] = results
    if result.error is not None:
        raise result.error
    return result


def _positive(seconds: float) -> float:
    if not seconds > 0:
        raise ValueError("a timeout is a number of seconds above 0")
    return seconds


def _concurrent(requests: int) -> None:
    if requests < 1:
        raise ValueError("at least one request runs at a time")


def _body(images: Sequence[Encoded]) -> tuple[str, bytes]:
    """Content type and body: a lone image is sent as it is, several as a form."""
    if len(images) == 1:
        return "application/octet-stream", images[0].data
    files = [("image", (image.sent_name, image.data, "application/octet-stream")) for image in images]
    form = httpx.Request("POST", "http://localhost", files=files)
    return form.headers["content-type"], form.read()


async def _asynchronous(images: Iterable[ImageLike] | AsyncIterable[ImageLike]) -> AsyncIterator[ImageLike]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
