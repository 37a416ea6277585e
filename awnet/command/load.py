"""Load for a model, and what came back: latencies, failures, verdicts. See `bench`."""

from __future__ import annotations

import asyncio
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from domain import __version__
from domain.shares import wilson
from server.core.bundled import EXAMPLES
from server.core.cpu_limits import usable_cores

from ..client.errors import AccessError, AnswerError, Error, NotServedError, ProblemError, TransportError
from ..client.images import Encoded
from ..client.predictor import AsyncPredictor
from ..client.results import Result
from .answerers import Open
from .arrivals import Arrivals, arrivals
from .images import Image, images

TWIN = "-adversarial"  # as the page pairs the examples
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
LATE_MS = 20.0  # requests that are sent so much later than they were due are told of
RATES = {"suspicious": ("suspicious", "adversarial"), "adversarial": ("adversarial",)}


class LabelledImage(NamedTuple):
    """An encoded image, and whether it was attacked."""

    name: str
    data: bytes
    attacked: bool


@dataclass(frozen=True, slots=True)
class Pace:
    """An open loop: requests come `rate` a second, whether or not earlier ones are answered."""

    rate: float
    arrivals: Arrivals


class Load:
    """Asks about the `labelled` images in turn, each at least once, until so many seconds are over.

    Without a pace it is a closed loop: `concurrency` clients, each of which asks again once it is answered. With one,
    latencies count from the moment at which a request was due, so that those that a stalled server (or this client)
    keeps from being sent are as slow as they would have been: leaving them out is called coordinated omission.

    Args:
        concurrency: most requests under way at a time.

    Attributes:
        seconds: what was measured, from the first request to the last answer.
        latencies: seconds of each answered request.
        cached: answered requests for which the model did not run, see `client.results.Result`.
        versions: of the model -> requests that it answered.
        delays: seconds by which each request of an open loop was sent late.
        failures: reason -> requests that it ended.
        verdicts: place among them -> its first result.
    """

    def __init__(
        self, labelled: Sequence[LabelledImage], seconds: float, concurrency: int, pace: Pace | None = None
    ) -> None:
        self.labelled = labelled
        self.concurrency = concurrency
        self.pace = pace
        self.seconds = 0.0
        self.latencies: list[float] = []
        self.cached = 0
        self.versions: Counter[str] = Counter()
        self.delays: list[float] = []
        self.failures: Counter[str] = Counter()
        self.verdicts: dict[int, Result] = {}
        self._asked_seconds = seconds
        self._next = 0

    async def run(self, opened: Open) -> None:
        """Raises what `opened` raises, and an `Error` where nobody answers the first request, which is not measured."""
        async with await opened() as predictor:
            await self._first(predictor)
            begun = time.perf_counter()
            if self.pace is None:
                self._until = begun + self._asked_seconds
                await asyncio.gather(*(self._ask_again(predictor) for _ in range(self.concurrency)))
            else:
                await self._ask_when_due(predictor, arrivals(self.pace.arrivals, self.pace.rate, self._asked_seconds))
            self.seconds = time.perf_counter() - begun

    async def _first(self, predictor: AsyncPredictor) -> None:
        """Warms up, and finds out that there is nobody."""
        try:
            await predictor.answer([_sent(self.labelled[0])], None, {})
        except (AccessError, AnswerError, NotServedError, TransportError):
            raise
        except Error:
            pass  # counted where it is measured

    async def _ask_again(self, predictor: AsyncPredictor) -> None:
        while self._next < len(self.labelled) or time.perf_counter() < self._until:
            if not await self._ask(predictor, time.perf_counter()):
                await asyncio.sleep(0.05)  # a server that is gone is not asked a million times

    async def _ask_when_due(self, predictor: AsyncPredictor, due: Iterator[float]) -> None:
        begun = time.perf_counter()
        room = asyncio.Semaphore(self.concurrency)

        async def ask(when: float) -> None:
            try:
                self.delays.append(time.perf_counter() - when)
                await self._ask(predictor, when)
            finally:
                room.release()

        async with asyncio.TaskGroup() as requests:
            for when in due:
                if (early := begun + when - time.perf_counter()) > 0:
                    await asyncio.sleep(early)
                await room.acquire()
                requests.create_task(ask(begun + when))

    async def _ask(self, predictor: AsyncPredictor, since: float) -> bool:
        """One request, with its latency since then; returns whether anybody is there."""
        place = self._next % len(self.labelled)
        self._next += 1
        try:
            (result,) = await predictor.answer([_sent(self.labelled[place])], None, {})
        except Error as error:
            self.failures[error.title if isinstance(error, ProblemError) else type(error).__name__] += 1
            return not isinstance(error, TransportError)
        self.latencies.append(time.perf_counter() - since)
        self.cached += result.cached
        if result.model is not None:
            self.versions[result.model.version] += 1
        self.verdicts.setdefault(place, result)
        return True


def read(clean: Sequence[str], adversarial: Sequence[str]) -> list[LabelledImage]:
    """The images of these paths. Raises ValueError."""
    found = [(image, False) for image in images(clean)] + [(image, True) for image in images(adversarial)]
    return [LabelledImage(image.name, _bytes(image), attacked) for image, attacked in found]


def examples() -> list[LabelledImage]:
    """The bundled examples, clean ones and their twins. Raises ValueError."""
    return [
        LabelledImage(p.name, p.read_bytes(), p.stem.endswith(TWIN)) for p in sorted(EXAMPLES.glob("*.png"))
    ] or read([str(EXAMPLES)], [])


def report(load: Load, url: str | None) -> dict[str, Any]:
    """What was measured: milliseconds, shares, counts."""
    latencies, delays = sorted(load.latencies), sorted(load.delays)
    model = next((result.model for result in load.verdicts.values() if result.model is not None), None)
    document: dict[str, Any] = {
        "awnet": __version__,
        "asked": url or "in this process",
        "model": None if model is None else asdict(model),
        "machine": {"python": platform.python_version(), "cores": usable_cores(), "load": list(os.getloadavg())},
        "seconds": round(load.seconds, 3),
        "concurrency": load.concurrency,
        "pace": None if load.pace is None else asdict(load.pace),
        "answered": len(latencies),
        "cached": load.cached,
        "versions": dict(load.versions),
        "failed": dict(load.failures),
        "images_per_second": round(len(latencies) / load.seconds, 2) if load.seconds else None,
        "latency_ms": {name: round(1000 * _quantile(latencies, q), 3) for name, q in QUANTILES.items()}
        | {"max": round(1000 * latencies[-1], 3)}
        if latencies
        else None,
        "sent_late_ms": {name: round(1000 * _quantile(delays, q), 3) for name, q in QUANTILES.items()}
        if delays
        else None,
    }
    for name, attacked in (("clean", False), ("adversarial", True)):
        results = [r for place, r in load.verdicts.items() if r.ok and load.labelled[place].attacked == attacked]
        if results:
            verdicts = Counter(str(result.verdict) for result in results)
            document[name] = {
                "images": len(results),
                "calibrated": sum(result.calibrated is True for result in results),
                "verdicts": dict(verdicts),
                "tpr" if attacked else "fpr": {point: _rate(verdicts, flagged) for point, flagged in RATES.items()},
            }
    return document


def _rate(verdicts: Counter[str], flagged: Sequence[str]) -> dict[str, float]:
    """The share of images with one of these verdicts, and its interval."""
    hits = sum(verdicts[verdict] for verdict in flagged)
    share, low, high = wilson(hits, verdicts.total())
    return {"flagged": hits, "share": share, "low": low, "high": high}


def summary(document: dict[str, Any]) -> str:
    """The report for people."""
    model, latency = document["model"], document["latency_ms"]
    who = "nobody answered" if model is None else f"{model['name']} version {' and '.join(document['versions'])}"
    pace, late = document["pace"], document["sent_late_ms"]
    loop = f"{pace['rate']:g} requests a second ({pace['arrivals']}), at most " if pace else ""
    loop += f"{document['concurrency']} requests at a time"
    lines = [
        f"{who}, {document['asked']}, {loop} for {document['seconds']:.1f} s",
        f"answered  {document['answered']}, {document['images_per_second']} images a second",
    ]
    if len(document["versions"]) > 1:
        answers = ", ".join(f"version {version} gave {count}" for version, count in document["versions"].items())
        lines.append(f"versions  {answers} of these answers: latencies and rates are of all of them")
    if document["cached"]:
        lines.append(
            f"cached    {document['cached']} of these answers came from the answer cache: "
            "rate and latencies are not those of the model"
        )
    if latency:
        lines.append("latency   " + ", ".join(f"{name} {value:.1f} ms" for name, value in latency.items()))
    if late and late["p99"] > LATE_MS:
        lines.append(
            f"late      p50 {late['p50']:.1f} ms, p99 {late['p99']:.1f} ms after they were due, and counted: "
            "the server or this client does not keep up"
        )
    if document["failed"]:
        lines.append("failed    " + ", ".join(f"{count} {why}" for why, count in document["failed"].items()))
    for name, rate in (("clean", "fpr"), ("adversarial", "tpr")):
        part = document.get(name)
        if part is None:
            continue
        shares = "; ".join(
            f"{rate.upper()} {100 * at['share']:.1f} % at '{point}' ({100 * at['low']:.1f} to {100 * at['high']:.1f})"
            for point, at in part[rate].items()
        )
        lines.append(f"{name:<12}{part['images']} images, {part['calibrated']} of them calibrated: {shares}")
    return "\n".join(lines)


def _quantile(ordered: Sequence[float], q: float) -> float:
    """The smallest value that a share q does not exceed."""
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def _sent(image: LabelledImage) -> Encoded:
    return Encoded(image.data, image.name)


def _bytes(image: Image) -> bytes:
    try:
        return image.read()
    except OSError as error:
        raise ValueError(f"{image.name}: {error.strerror}") from None
