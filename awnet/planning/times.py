"""What a request costs a replica, as it was measured: one JSON document."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from server.core.regular_files import read_regular

BUNDLED = Path(__file__).with_name("times.json")
MAX_BYTES = 1 << 20
FORMAT = 1
MILLISECONDS = ("read", "decode", "answer", "deliver", "python", "fixed")


class Cold(NamedTuple):
    """What a request costs more than one among many when it comes alone, so many seconds after the last; in seconds.

    Attributes:
        loop, engine: CPU time of the event loop and of the engine's thread, whose caches others have used meanwhile.
        wait: without a core: threads and halted cores that are woken.
    """

    pause: float
    loop: float
    engine: float
    wait: float


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """Seconds of CPU time of one core, unless said otherwise.

    Attributes:
        executions: images in a batch -> one execution of the model on one thread, its batch put together and its
            results handed over included.
        python: of that, what needs the interpreter's lock.
        read: of the event loop, from the first byte of a request until its image is decoded.
        decode: of one image; on the event loop while others are in the engine, else on the engine's thread.
        answer: of the event loop, from a result to the last byte of its answer.
        deliver: of the event loop for each execution, whatever its size: it is woken, and hands out the results.
        fixed: seconds of each answer that take no core: sockets, threads that are woken.
        cold: the same by the pause before, ascending.
        spread: quantiles, evenly spaced, of what an execution takes over its mean: their own mean is 1.
        memory_mb: of one process, under load.
        ready_seconds: from the start of a process until it takes requests.
        about: machine, model, day and command of the measurement.
    """

    executions: Mapping[int, float]
    read: float = 0.0
    decode: float = 0.0
    answer: float = 0.0
    deliver: float = 0.0
    python: float = 0.0
    fixed: float = 0.0
    cold: tuple[Cold, ...] = ()
    spread: tuple[float, ...] = (1.0,)
    memory_mb: float = 0.0
    ready_seconds: float = 0.0
    about: Mapping[str, Any] = field(default_factory=dict)

    def execution(self, images: int) -> float:
        """One execution of so many images; sizes that were not measured lie on the line between their neighbours."""
        known = self.executions.get(images)
        if known is not None:
            return known
        sizes = sorted(self.executions)
        if len(sizes) == 1:
            return self.executions[sizes[0]] * images / sizes[0]
        above = min(max(1, sum(size < images for size in sizes)), len(sizes) - 1)
        low, high = sizes[above - 1], sizes[above]
        slope = (self.executions[high] - self.executions[low]) / (high - low)
        return self.executions[low] + slope * (images - low)

    def cold_loop(self, pause: float) -> float:
        """CPU time that the event loop takes more after a pause."""
        return after(self.cold, pause).loop

    def cold_engine(self, pause: float) -> float:
        """CPU time that the engine takes more after a pause."""
        return after(self.cold, pause).engine

    def wait(self, pause: float) -> float:
        """Seconds of a request that take no core, after a pause."""
        return self.fixed + after(self.cold, pause).wait

    def request(self, images: int) -> float:
        """CPU time of one request of one image where batches have so many."""
        return self.read + self.decode + self.answer + (self.deliver + self.execution(images)) / images

    def capacity(self, cores: int, max_batch: int) -> float:
        """Requests a second that so many cores can answer at most."""
        sizes = [size for size in (*self.executions, max_batch) if size <= max_batch]
        return cores / min(map(self.request, sizes))


def after(points: Sequence[Cold], pause: float) -> Cold:
    """On the lines between no pause and those that were measured; beyond the last as there."""
    below = Cold(0.0, 0.0, 0.0, 0.0)
    for point in points:
        if pause < point.pause:
            share = (pause - below.pause) / (point.pause - below.pause)
            return Cold(*(low + share * (high - low) for low, high in zip(below, point, strict=True)))
        below = point
    return below


def read(path: Path) -> ServiceTimes:
    """Raises ValueError with one line where the file is none."""
    try:
        return parsed(json.loads(read_regular(path, MAX_BYTES).decode()))  # cut where it is larger, and so no JSON
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of JSON and UTF-8 too
        raise ValueError(f"{path}: no service times: {error}") from None


def parsed(document: Any) -> ServiceTimes:
    """Of a document as `written` makes it. Raises ValueError."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"the document has no format {FORMAT}")
    executions = document.get("executions_ms")
    if not isinstance(executions, dict) or not executions:
        raise ValueError("executions_ms must map sizes of batches to milliseconds")
    sizes = {}
    for size, spent in executions.items():
        if not size.isdecimal() or not 1 <= int(size) <= 1024:
            raise ValueError(f"executions_ms: {size!r} is no size of a batch")
        sizes[int(size)] = _number(spent, "executions_ms", above=0.0) / 1000
    spread = document.get("spread", [1.0])
    if not isinstance(spread, list) or not spread:
        raise ValueError("spread must be a list of numbers")
    shares = [_number(share, "spread") for share in spread]
    mean = sum(shares) / len(shares)
    if not mean:
        raise ValueError("spread must not be zero throughout")
    milliseconds = {name: _number(document.get(f"{name}_ms", 0.0), f"{name}_ms") / 1000 for name in MILLISECONDS}
    cold = document.get("cold_ms", [])
    if not isinstance(cold, list) or not all(isinstance(row, list) and len(row) == len(Cold._fields) for row in cold):
        raise ValueError(f"cold_ms must be a list of {list(Cold._fields)}")
    points = [Cold(*(_number(value, "cold_ms") / 1000 for value in row)) for row in cold]
    if any(later.pause <= sooner.pause for sooner, later in pairwise([Cold(0.0, 0.0, 0.0, 0.0), *points])):
        raise ValueError("cold_ms: pauses must ascend")
    about = document.get("about", {})
    return ServiceTimes(
        executions=sizes,
        cold=tuple(points),
        spread=tuple(share / mean for share in shares),
        memory_mb=_number(document.get("memory_mb", 0.0), "memory_mb"),
        ready_seconds=_number(document.get("ready_seconds", 0.0), "ready_seconds"),
        about=about if isinstance(about, dict) else {},
        **milliseconds,
    )


def written(times: ServiceTimes) -> dict[str, Any]:
    """The document, milliseconds rounded to a microsecond."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "about": dict(times.about),
        "executions_ms": {str(size): round(1000 * spent, 4) for size, spent in sorted(times.executions.items())},
    }
    for name in MILLISECONDS:
        document[f"{name}_ms"] = round(1000 * getattr(times, name), 4)
    document["cold_ms"] = [[round(1000 * value, 4) for value in point] for point in times.cold]
    document["spread"] = [round(share, 4) for share in times.spread]
    document["memory_mb"] = round(times.memory_mb, 1)
    document["ready_seconds"] = round(times.ready_seconds, 2)
    return document


def _number(given: object, name: str, above: float | None = None) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given) or given < 0:
        raise ValueError(f"{name}: {given!r} is no number of milliseconds, or the like")
    if above is not None and given <= above:
        raise ValueError(f"{name}: {given!r} must be above {above:g}")
    return float(given)
