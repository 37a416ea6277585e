"""Measures service times of a server that runs on this machine: CPU time of its threads under load."""

from __future__ import annotations

import statistics
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .asking import Asker, Sample
from .times import ServiceTimes

CLIENTS = (2, 3, 4, 6, 8, 12, 16, 24)
ROUNDS = 3  # so that a noisy moment hits all alike
SPREAD = 101  # quantiles
LEAST_SECONDS = 50e-6  # of CPU time a request: a process that spends less is not the one that answers


class Spent(NamedTuple):
    """What a load took of a server, in seconds of CPU time.

    Attributes:
        loop: of its main thread, which is its event loop.
        others: of its other threads, which run the model.
    """

    requests: int
    images: float
    batches: float
    loop: float
    others: float

    def plus(self, more: Spent) -> Spent:
        """Both together."""
        return Spent(
            self.requests + more.requests,
            self.images + more.images,
            self.batches + more.batches,
            self.loop + more.loop,
            self.others + more.others,
        )


def measured(
    asker: Asker,
    pid: int,
    url: str,
    seconds: float,
    about: Mapping[str, Any],
    ready_seconds: float = 0.0,
    progress: Callable[[float], object] = lambda share: None,
) -> ServiceTimes:
    """Closed loops of more and more clients; batches are fuller the more there are.

    Args:
        pid: of the server, one process on Linux.
        url: where its /metrics are.
        seconds: of all.

    Raises:
        ValueError: it is not to be measured.
    """
    _told(pid, url), _memory_mb(pid)  # what cannot be looked at is known before half a minute has gone
    each = seconds / (ROUNDS * (len(CLIENTS) + 1) + 1)
    _first(asker, pid, url, each)
    alone: list[Sample] = []
    spent: dict[int, Spent] = {}
    decode: list[float] = []
    for turn in range(ROUNDS):
        alone += _answered(asker.closed(1, each))
        for clients in CLIENTS:
            before = _told(pid, url)
            samples = _answered(asker.closed(clients, each))
            after = _told(pid, url)
            took = Spent(len(samples), *(b - a for a, b in zip(before, after, strict=True)))
            spent[clients] = spent[clients].plus(took) if clients in spent else took
            decode += [sample.stages()["decode"] for sample in samples]
        progress((turn + 1) / ROUNDS)
    fullness = [each.batches / each.images for each in spent.values() if each.images]
    base, image = _line(fullness, [each.others / each.images for each in spent.values() if each.images])
    deliver, loop = _line(fullness, [each.loop / each.images for each in spent.values() if each.images])
    decoding = min(loop, statistics.median(decode))
    inference = [sample.stages()["inference"] for sample in alone]
    rest = max(0.0, (loop - decoding) / 2)
    lone = statistics.median(inference)
    seen = statistics.median(sample.seconds for sample in alone)
    mean = statistics.mean(inference)
    return ServiceTimes(
        executions={size: base + image * size for size in (1, 2, 4, 8, 16, 32)},
        read=rest,
        decode=decoding,
        answer=rest,
        deliver=deliver,
        fixed=max(0.0, seen - 2 * rest - decoding - deliver - lone),
        spread=tuple(value / mean for value in statistics.quantiles(inference, n=SPREAD + 1, method="inclusive")),
        memory_mb=_memory_mb(pid),
        ready_seconds=ready_seconds,
        about=about,
    )


def _first(asker: Asker, pid: int, url: str, seconds: float) -> None:
    """Warms the server up. Raises ValueError where it is not to be measured so."""
    before = _told(pid, url)
    asked = len(_answered(asker.closed(8, seconds)))
    images, _, loop, others = (b - a for a, b in zip(before, _told(pid, url), strict=True))
    if loop + others < LEAST_SECONDS * asked:
        raise ValueError(f"process {pid} does not answer at {url}: name that of a server without --workers")
    if images < asked / 2:
        raise ValueError(f"the model ran {images:.0f} images of {asked}: measure a server without an answer cache")


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """(seconds a batch, seconds an image) by least squares over the loads, each scaled to one image: x batches."""
    if len(x) < 2:
        raise ValueError("the server ran no images")
    middle, height = statistics.mean(x), statistics.mean(y)
    spread = sum((a - middle) ** 2 for a in x)
    slope = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / spread if spread > 1e-6 else 0.0
    batch = min(max(0.0, slope), height / max(middle, 1e-9))
    return batch, max(height - batch * middle, 1e-6)


def _answered(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Raises ValueError where one was not."""
    for sample in samples:
        if sample.status != 200:
            raise ValueError(f"the server answers with status {sample.status}" if sample.status else "nobody answers")
    return samples


def _told(pid: int, url: str) -> tuple[float, float, float, float]:
    """Images, batches, and seconds of the main thread and of the others. Raises ValueError."""
    tasks = Path(f"/proc/{pid}/task")
    spent = {"loop": 0.0, "others": 0.0}
    try:
        for task in tasks.iterdir():
            try:
                seconds = int((task / "schedstat").read_text("ascii").split()[0]) / 1e9
            except (FileNotFoundError, ProcessLookupError):  # a thread that has ended
                continue
            spent["loop" if task.name == str(pid) else "others"] += seconds
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
    return counts["sum"], counts["count"], spent["loop"], spent["others"]


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
