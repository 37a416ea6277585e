"""Measures service times of a server that runs on this machine: CPU time of its threads under load."""

from __future__ import annotations

import statistics
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .asking import Asker, Sample
from .times import Cold, ServiceTimes, after

CLIENTS = (2, 3, 4, 6, 8, 12, 16, 24)
LONE = (300, 150, 75, 25)  # requests a second, evenly spaced: each comes alone, after a longer pause
ROUNDS = 3  # so that a noisy moment hits all alike
SPREAD = 101  # quantiles
LEAST_SECONDS = 50e-6  # of CPU time a request: a process that spends less is not the one that answers


class Spent(NamedTuple):
    """What a server has done, or what a load took of it, in seconds of CPU time.

    Attributes:
        loop: of its main thread, which is its event loop.
        others: of its other threads, which run the model.
    """

    images: float = 0.0
    batches: float = 0.0
    loop: float = 0.0
    others: float = 0.0

    def plus(self, more: Spent, sign: int = 1) -> Spent:
        """Both together, or what this is more than the other."""
        return Spent(*(a + sign * b for a, b in zip(self, more, strict=True)))

    def image(self) -> Spent:
        """Of each image. Raises ValueError where there was none."""
        if not self.images:
            raise ValueError("the server ran no images")
        return Spent(*(value / self.images for value in self))


class Load:
    """One load, in several turns."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.spent = Spent()

    def add(self, pid: int, url: str, ask: Callable[[], list[Sample]]) -> None:
        """One turn. Raises ValueError."""
        before = spent(pid, url)
        self.samples += _answered(ask())
        self.spent = self.spent.plus(spent(pid, url).plus(before, -1))

    def median(self, stage: str) -> float:
        """Seconds of a stage, as the server says."""
        return statistics.median(sample.stages()[stage] for sample in self.samples)

    def seen(self) -> float:
        """Seconds until an answer."""
        return statistics.median(sample.seconds for sample in self.samples)

    def waited(self) -> float:
        """Seconds of a lone request that no thread of the server worked."""
        image = self.spent.image()
        return max(0.0, self.seen() - image.loop - image.others)


def measured(
    asker: Asker,
    pid: int,
    url: str,
    seconds: float,
    about: Mapping[str, Any],
    ready_seconds: float = 0.0,
    progress: Callable[[float], object] = lambda share: None,
) -> ServiceTimes:
    """Closed loops of more and more clients, then lone requests after longer and longer pauses.

    Args:
        pid: of the server, one process on Linux.
        url: where its /metrics are.
        seconds: of all.

    Raises:
        ValueError: it is not to be measured.
    """
    spent(pid, url), _memory_mb(pid)  # what cannot be looked at is known before half a minute has gone
    each = seconds / (ROUNDS * (1 + len(CLIENTS) + len(LONE)) + 1)
    _first(asker, pid, url, each)
    alone, closed, lone = Load(), [Load() for _ in CLIENTS], [Load() for _ in LONE]
    for turn in range(ROUNDS):
        alone.add(pid, url, partial(asker.closed, 1, each))
        for clients, load in zip(CLIENTS, closed, strict=True):
            load.add(pid, url, partial(asker.closed, clients, each))
        for rate, load in zip(LONE, lone, strict=True):
            due = [at / rate for at in range(max(1, round(each * rate)))]
            load.add(pid, url, partial(asker.offered, due))
        progress((turn + 1) / ROUNDS)
    images = [load.spent.image() for load in closed]
    base, image = _line([each.batches for each in images], [each.others for each in images])
    deliver, loop = _line([each.batches for each in images], [each.loop for each in images])
    decoding = min(loop, statistics.median(load.median("decode") for load in closed))
    inference = [sample.stages()["inference"] for sample in alone.samples]
    mean = statistics.mean(inference)
    hot = Spent(1, 1, loop + deliver, base + image)
    pauses = {1 / rate - load.seen(): load for rate, load in zip(LONE, lone, strict=True)}
    pauses[alone.seen() - alone.spent.image().others] = alone  # the engine's; the client asks again at once
    return ServiceTimes(
        executions={size: base + image * size for size in (1, 2, 4, 8, 16, 32)},
        read=(loop - decoding) / 2,
        decode=decoding,
        answer=(loop - decoding) / 2,
        deliver=deliver,
        python=max(0.0, alone.spent.image().others - alone.median("inference")),
        fixed=alone.waited(),
        cold=cold(hot, alone.waited(), pauses),
        spread=tuple(value / mean for value in statistics.quantiles(inference, n=SPREAD + 1, method="inclusive")),
        memory_mb=_memory_mb(pid),
        ready_seconds=ready_seconds,
        about=about,
    )


def cold(hot: Spent, fixed: float, lone: Mapping[float, Load]) -> tuple[Cold, ...]:
    """What lone requests cost more than those among many, by the pause before, seconds.

    An event loop works twice for each, before the model runs and after it, and has paused both times.
    """
    points = []
    for pause, load in lone.items():
        if pause <= 0:  # not alone: the server takes longer
            continue
        image = load.spent.image()
        loop, engine = max(0.0, image.loop - hot.loop), max(0.0, image.others - hot.others)
        points.append(Cold(pause, loop, engine, max(0.0, load.waited() - fixed)))
    points.sort()
    second = after(points, hot.others).loop / 2
    return tuple(point._replace(loop=max(0.0, point.loop - second)) for point in points)


def _first(asker: Asker, pid: int, url: str, seconds: float) -> None:
    """Warms the server up. Raises ValueError where it is not to be measured so."""
    before = spent(pid, url)
    asked = len(_answered(asker.closed(8, seconds)))
    took = spent(pid, url).plus(before, -1)
    if took.loop + took.others < LEAST_SECONDS * asked:
        raise ValueError(f"process {pid} does not answer at {url}: name that of a server without --workers")
    if took.images < asked / 2:
        raise ValueError(f"the model ran {took.images:.0f} images of {asked}: measure a server without an answer cache")


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """(seconds a batch, seconds an image) by least squares over the loads, each scaled to one image: x batches."""
    middle, height = statistics.mean(x), statistics.mean(y)
    spread = sum((a - middle) ** 2 for a in x)
    slope = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / spread if spread > 1e-6 else 0.0
    batch = min(max(0.0, slope), height / max(middle, 1e-9))
    return batch, max(height - batch * middle, 1e-6)


def _answered(samples: list[Sample]) -> list[Sample]:
    """Raises ValueError where one was not."""
    for sample in samples:
        if sample.status != 200:
            raise ValueError(f"the server answers with status {sample.status}" if sample.status else "nobody answers")
    return samples


def spent(pid: int, url: str) -> Spent:
    """Until now. Raises ValueError."""
    tasks = Path(f"/proc/{pid}/task")
    threads = {"loop": 0.0, "others": 0.0}
    try:
        for task in tasks.iterdir():
            try:
                seconds = int((task / "schedstat").read_text("ascii").split()[0]) / 1e9
            except (FileNotFoundError, ProcessLookupError):  # a thread that has ended
                continue
            threads["loop" if task.name == str(pid) else "others"] += seconds
    except OSError as error:
        raise ValueError(f"process {pid} cannot be looked at: {error.strerror}") from None
    counts = {"sum": 0.0, "count": 0.0}
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310, an address that was given
            for line in answer.read().decode().splitlines():
                name, _, value = line.rpartition(" ")
                if name.startswith("awnet_batch_images_"):
                    counts[name.removeprefix("awnet_batch_images_")] = float(value)
    except OSError as error:  # of urllib too, which keeps the cause
        raise ValueError(f"{url}/metrics: {getattr(error, 'reason', error)}") from None
    return Spent(counts["sum"], counts["count"], threads["loop"], threads["others"])


def _memory_mb(pid: int) -> float:
    """Raises ValueError."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except OSError as error:
        raise ValueError(f"process {pid} cannot be looked at: {error.strerror}") from None
    for line in lines:
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
