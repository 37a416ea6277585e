"""Asks for one image after the other, several at a time, and keeps the results in order."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from http import HTTPStatus

from ..client.errors import TYPE_PREFIX, AccessError, AnswerError, DeadlineError, Error, ProblemError, TransportError
from ..client.images import Encoded
from ..client.predictor import AsyncPredictor
from ..local import StartError
from .answerers import Open
from .images import Image, shown
from .progress import Progress, failure, outcome
from .results import Line, Results, encoded


def problem(error: Error) -> Line:
    """Why an image has no answer, without what differs from run to run."""
    if not isinstance(error, ProblemError):
        return {"title": "Deadline exceeded", "detail": str(error)}
    return {
        "type": f"{TYPE_PREFIX}{error.slug}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }


class StopError(Exception):
    """No further image will be answered; says why."""


async def answers(
    predictor: AsyncPredictor, images: Iterable[Image], concurrency: int, before: Mapping[str, str]
) -> AsyncGenerator[Line | None]:
    """The line of each image in turn, with `concurrency` of them under way. Raises StopError.

    Args:
        before: name -> SHA-256 of what was answered earlier: None is yielded for these.
    """
    under_way: deque[asyncio.Task[Line | None]] = deque()
    try:
        for image in images:
            under_way.append(asyncio.create_task(_ask(predictor, image, before)))
            if len(under_way) >= concurrency:
                yield await under_way[0]
                under_way.popleft()
        while under_way:
            yield await under_way[0]
            under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _ask(predictor: AsyncPredictor, image: Image, before: Mapping[str, str]) -> Line | None:
    try:
        body = await asyncio.to_thread(image.read)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return {"file": image.name, "error": {"title": "File cannot be read", "detail": why}}
    sha256 = hashlib.sha256(body).hexdigest()
    if before.get(image.name) == sha256:
        return None
    line: Line = {"file": image.name, "sha256": sha256}
    try:
        (result,) = await predictor.answer([Encoded(body, image.name)], None, {})
    except (AccessError, AnswerError, TransportError) as error:  # every other image would meet it as well
        keyless = isinstance(error, AccessError) and error.status == HTTPStatus.UNAUTHORIZED
        raise StopError(f"{error}{'; --key takes one' if keyless else ''}") from None
    except (ProblemError, DeadlineError) as error:
        return {**line, "error": problem(error)}
    if result.error is not None:
        return {**line, "error": problem(result.error)}
    assert result.model is not None
    return {**line, "model": asdict(result.model), "mode": result.mode, **result.raw, "file": image.name}


class Scoring:
    """One run.

    Args:
        images: what is asked for, in the order of the results.
        results: where they go; None: to standard output.
        concurrency: images asked for at a time.
        quiet: no progress and no summary.
    """

    def __init__(self, images: Sequence[Image], results: Results | None, concurrency: int, *, quiet: bool) -> None:
        self._images = images
        self._results = results
        self._concurrency = concurrency
        self._progress = Progress(len(images), quiet)

    async def run(self, opened: Open) -> int:
        """The exit status: 0 all were answered, 1 some were not, 2 nobody answers."""
        progress = self._progress
        try:
            async with await opened() as predictor:
                progress.begin()
                await self._ask_all(predictor)
        except (StartError, StopError) as error:
            progress.clear()
            begun = bool(progress.counts)
            more = "; --resume goes on here" if begun and self._results is not None else ""
            print(shown(f"{error}{more}"), file=sys.stderr)
            return 1 if begun else 2
        if self._results is not None:
            self._results.finish([image.name for image in self._images])
        progress.end()
        return 1 if progress.counts["failed"] else 0

    async def _ask_all(self, predictor: AsyncPredictor) -> None:
        before = {} if self._results is None else self._results.answered
        async with aclosing(answers(predictor, self._images, self._concurrency, before)) as lines:
            async for line in lines:
                if line is None:
                    self._progress.add({"before": 1})
                else:
                    self._write(line)
                    self._progress.add({outcome(line): 1}, [failure(line)] if "error" in line else [])

    def _write(self, line: Line) -> None:
        """Raises StopError where another model answers than before."""
        if self._results is None:
            sys.stdout.buffer.write(encoded(line))
            sys.stdout.buffer.flush()
            return
        before, now = self._results.model, line.get("model", {}).get("sha256")
        if before and now and before != now:
            self._progress.counts.clear()  # to whoever calls, nothing was begun: --resume would end here again
            raise StopError(
                f"another model answers ({now[:12]}) than answered before ({before[:12]}): name another --out"
            )
        self._results.add(line)
