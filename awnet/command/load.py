"""Load for a model, and what came back: latencies, failures, verdicts. See `bench`."""

from __future__ import annotations

import asyncio
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
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
from .images import Image, images

TWIN = "-adversarial"  # as the page pairs the examples
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
RATES = {"suspicious": ("suspicious", "adversarial"), "adversarial": ("adversarial",)}


class LabelledImage(NamedTuple):
    """An encoded image, and whether it was attacked."""

    name: str
    data: bytes
    attacked: bool


class Load:
    """Asks about the `labelled` images in turn, each at least once, until so many seconds are over.

    Attributes:
        seconds: what was measured, from the first request to the last answer.
        latencies: seconds of each answered request.
        failures: reason -> requests that it ended.
        verdicts: place among them -> its first result.
    """

    def __init__(self, labelled: Sequence[LabelledImage], seconds: float, concurrency: int) -> None:
        self.labelled = labelled
        self.concurrency = concurrency
        self.seconds = 0.0
        self.latencies: list[float] = []
        self.failures: Counter[str] = Counter()
        self.verdicts: dict[int, Result] = {}
        self._asked_seconds = seconds
        self._next = 0

    async def run(self, opened: Open) -> None:
        """Raises what `opened` raises, and an `Error` where nobody answers the first request, which is not measured."""
        async with await opened() as predictor:
            await self._first(predictor)
            begun = time.perf_counter()
            self._until = begun + self._asked_seconds
            await asyncio.gather(*(self._ask(predictor) for _ in range(self.concurrency)))
            self.seconds = time.perf_counter() - begun

    async def _first(self, predictor: AsyncPredictor) -> None:
        """Warms up, and finds out that there is nobody."""
        try:
            await predictor.answer([_sent(self.labelled[0])], None, {})
        except (AccessError, AnswerError, NotServedError, TransportError):
            raise
        except Error:
            pass  # counted where it is measured

    async def _ask(self, predictor: AsyncPredictor) -> None:
        while self._next < len(self.labelled) or time.perf_counter() < self._until:
            place = self._next % len(self.labelled)
            self._next += 1
            begun = time.perf_counter()
            try:
                (result,) = await predictor.answer([_sent(self.labelled[place])], None, {})
            except Error as error:
                self.failures[error.title if isinstance(error, ProblemError) else type(error).__name__] += 1
                if isinstance(error, TransportError):
                    await asyncio.sleep(0.05)  # a server that is gone is not asked a million times
                continue
            self.latencies.append(time.perf_counter() - begun)
            self.verdicts.setdefault(place, result)


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
    latencies = sorted(load.latencies)
    model = next((result.model for result in load.verdicts.values() if result.model is not None), None)
    document: dict[str, Any] = {
        "awnet": __version__,
        "asked": url or "in this process",
        "model": None if model is None else asdict(model),
        "machine": {"python": platform.python_version(), "cores": usable_cores(), "load": list(os.getloadavg())},
        "seconds": round(load.seconds, 3),
        "concurrency": load.concurrency,
        "answered": len(latencies),
        "failed": dict(load.failures),
        "images_per_second": round(len(latencies) / load.seconds, 2) if load.seconds else None,
        "latency_ms": {name: round(1000 * _quantile(latencies, q), 3) for name, q in QUANTILES.items()}
        | {"max": round(1000 * latencies[-1], 3)}
        if latencies
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


def told(document: dict[str, Any]) -> str:
    """The report for people."""
    model, latency = document["model"], document["latency_ms"]
    who = "nobody answered" if model is None else f"{model['name']} version {model['version']}"
    lines = [
        f"{who}, {document['asked']}, {document['concurrency']} requests at a time for {document['seconds']:.1f} s",
        f"answered  {document['answered']}, {document['images_per_second']} images a second",
    ]
    if latency:
        lines.append("latency   " + ", ".join(f"{name} {value:.1f} ms" for name, value in latency.items()))
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
