"""How large batches are and what waiting for fuller ones is worth: the scheduler in virtual time, and its real cost.

* Two workers with a core each; HTTP is one thread that spends a fixed time on a request before the engine, and on a
  batch and each of its answers after it. An execution takes as long as its batch's size does, give or take 10 %.
* Waiting: closed loops of clients; never wait, a window (the last idle worker always waits its full length for a full
  batch), or the server's own rule (`server.engines.scheduling`).
* Shares: open loops at several shares of what batches of the largest size would reach, and closed ones. A worker
  takes the largest batch that the idle workers leave it, its share among all workers, or what the server's rule says.
* Two models: the given one, timed here on one thread, and one for which a batch costs hardly more than an image.

The overhead is that of `server.engines.batching` with a model that does nothing: CPU time a request, the client's
included.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from server.core.engine import Terms
from server.core.images import PixelArray
from server.engines.batching import Batcher
from server.engines.scheduling import Batch, Job, Lane, Scheduler, buckets

from ..harness import report

EXAMPLES = """examples:
  python -m benchmarks.speed.batching                              the bundled model, about a minute
  python -m benchmarks.speed.batching --seconds 1 --out /tmp/batching   a quick look
"""
MOST, WORKERS = 8, 2
READ_SECONDS, ANSWER_SECONDS, BATCH_SECONDS = 0.19e-3, 0.09e-3, 0.1e-3  # of the event loop's one thread
EVEN = {1: 4.0e-3, 2: 4.2e-3, 4: 4.5e-3, 8: 5.0e-3}
DELAYS, CLIENTS = (0.001, 0.005), (2, 8, 16, 32)
LOADS = (0.3, 0.5, 0.7, 0.85)
SHARES = ("among the idle", "among all", "server's")
WAITS = ("never", *(f"{rule} {1000 * delay:g} ms" for delay in DELAYS for rule in ("window", "server's")))


def main() -> int:
    parser = report.parser("speed.batching", __doc__, EXAMPLES)
    parser.add_argument("--model", type=Path, default=report.bundled_model() / "model.onnx")
    parser.add_argument("--seconds", type=float, default=3.0, help="of virtual time [3]")
    report.add_out(parser, "batching")
    options = parser.parse_args()
    models = {"given": seconds_by_size(options.model), "even": EVEN}
    rows = [
        {"model": name, "clients": clients, "rule": rule, **served(cost, rule, options.seconds, clients=clients)}
        for name, cost in models.items()
        for clients in CLIENTS
        for rule in (*WAITS, *SHARES)
    ]
    open_rows = [
        {"model": name, "load": load, "rule": rule, **served(cost, rule, 4 * options.seconds, rate=load * most(cost))}
        for name, cost in models.items()
        for load in LOADS
        for rule in SHARES
    ]
    overhead = {clients: asyncio.run(cpu_microseconds(clients)) for clients in (1, 8)}
    found = {
        "what": "virtual time: requests/s, median and p99 ms by rule; overhead: CPU us a request",
        "machine": report.loaded_machine(),
        "batch_ms": {name: {size: 1000 * s for size, s in cost.items()} for name, cost in models.items()},
        "rows": rows,
        "open_rows": open_rows,
        "overhead_us": overhead,
    }
    report.conclude(options.out, found, markdown(found))
    return 0


def seconds_by_size(path: Path) -> dict[int, float]:
    """CPU time of the quickest of many runs on one thread, by batch size: the cost where nobody disturbs it."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    found = {}
    for size in buckets(MOST):
        images = np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8)
        spent = []
        for _ in range(150):
            started = time.thread_time()
            session.run(None, {"image": images})
            spent.append(time.thread_time() - started)
        found[size] = min(spent)
    return found


def most(cost: dict[int, float]) -> float:
    """Requests a second that batches of the largest size would reach, or the event loop."""
    return min(WORKERS * MOST / cost[MOST], 0.9 / (READ_SECONDS + ANSWER_SECONDS + BATCH_SECONDS / MOST))


class AmongTheIdle(Scheduler[Job]):
    """A worker takes as much as those that are idle leave it, and so all there is where the others are busy."""

    def _size(self, lane: Lane[Job], waits: int, line: int, idle: int) -> int:
        return self._floor[min(waits, -(-line // idle))]


class AmongAll(Scheduler[Job]):
    """A worker takes no more than its share among all."""

    def _size(self, lane: Lane[Job], waits: int, line: int, idle: int) -> int:
        return self._floor[min(waits, -(-line // self._workers))]


KINDS = {"among the idle": AmongTheIdle, "among all": AmongAll}


def served(
    cost: dict[int, float], rule: str, seconds: float, *, clients: int = 0, rate: float = 0.0, workers: int = WORKERS
) -> dict[str, float]:
    """Requests a second and milliseconds in the engine, median and p99.

    Args:
        cost: seconds of one execution, by the size of its batch.
        rule: of WAITS or SHARES.
        seconds: of virtual time.
        clients: that send again when they are answered; or:
        rate: requests a second that come on their own.
    """
    kind, _, length = ("server's", "", "1") if rule in SHARES else rule.partition(" ")
    delay = float(length.split()[0]) / 1000 if length else 0.0
    window = delay if kind == "window" else 0.0
    scheduler: Scheduler[Job] = KINDS.get(rule, Scheduler[Job])(
        workers=workers, max_batch=MOST, capacity=10_000, delay=0.0 if window else delay
    )
    lane: Lane[Job] = Lane()
    scheduler.open(lane)
    for size, spent in cost.items():
        lane.learn(size, spent)
    rng = random.Random(1)
    events: list[tuple[float, int, Callable[[], None]]] = []
    order = itertools.count()
    latencies: list[float] = []
    now = front = 0.0
    idle = workers

    def at(when: float, what: Callable[[], None]) -> None:
        heapq.heappush(events, (when, next(order), what))

    def spend(spent: float, then: Callable[[], None]) -> None:
        nonlocal front
        front = max(now, front) + spent * rng.uniform(0.7, 1.3)
        at(front, then)

    def send() -> None:
        spend(READ_SECONDS, arrive)

    def arrive() -> None:
        scheduler.add(Job(lane, 1), now)
        work()

    def work() -> None:
        nonlocal idle
        while idle:
            oldest = next((job.arrived for line in lane.queues for job in line), now)
            # The window: the last idle worker waits it out beside a busy one, unless the batch is full.
            if window and idle == 1 and lane.waiting[0] < MOST and now < oldest + window - 1e-9:
                at(oldest + window, work)
                return
            batch = scheduler.take(now)
            if not isinstance(batch, Batch):
                if batch is not None:
                    at(batch, work)
                return
            idle -= 1
            size = len(batch.parts)
            run = cost[size] * rng.uniform(0.9, 1.1)
            at(now + run, partial(end, batch, run))

    def end(batch: Batch[Job], run: float) -> None:
        nonlocal idle
        idle += 1
        scheduler.done(batch, now, [(len(batch.parts), run)])
        spend(BATCH_SECONDS, lambda: None)
        for job, _ in batch.parts:
            latencies.append(now - job.arrived)
            spend(ANSWER_SECONDS, send if clients and now < seconds else lambda: None)
        work()

    for _ in range(clients):
        send()
    due = 0.0
    while rate and (due := due + rng.expovariate(rate)) < seconds:
        at(due, send)
    while events:
        now, _, what = heapq.heappop(events)
        what()
    quantiles = statistics.quantiles(latencies, n=100, method="inclusive")
    return {"per_second": len(latencies) / now, "p50_ms": 1000 * quantiles[49], "p99_ms": 1000 * quantiles[98]}


async def cpu_microseconds(clients: int, requests: int = 4000) -> float:
    """CPU time of the whole path through `Batcher`, least of five runs."""
    nothing = np.zeros((MOST, 10), np.float32)
    batcher = Batcher(workers=WORKERS, max_batch=MOST, capacity=256, delay=0.001)
    feed = batcher.open(lambda images, alone: (nothing, nothing, nothing), 4)
    image = PixelArray(np.zeros((3, 4, 4), np.uint8))

    async def client() -> None:
        for _ in range(requests // clients):
            await feed.submit([image], Terms(time.monotonic() + 10))

    spent = []
    for _ in range(5):
        started = time.process_time()
        await asyncio.gather(*[client() for _ in range(clients)])
        spent.append((time.process_time() - started) / requests)
    await batcher.close()
    return 1e6 * min(spent)


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        "# How large batches are, and what waiting for fuller ones is worth",
        "",
        f"Virtual time, {WORKERS} workers, times in the engine. Made by `python -m benchmarks.speed.batching`.",
        "",
        "## Waiting: closed loops, requests/s (median ms)",
        "",
        *table(found, found["rows"], "clients", WAITS, lambda r: f"{r['per_second']:.0f} ({r['p50_ms']:.1f})"),
        "",
        "## A worker's share of what waits: closed loops, requests/s (p99 ms)",
        "",
        *table(found, found["rows"], "clients", SHARES, lambda r: f"{r['per_second']:.0f} ({r['p99_ms']:.1f})"),
        "",
        "## The same: open loops, median, p99 ms",
        "",
        *table(found, found["open_rows"], "load", SHARES, lambda r: f"{r['p50_ms']:.1f}, {r['p99_ms']:.1f}"),
    ]
    overhead = ", ".join(f"{us:.0f} us at {clients}" for clients, us in found["overhead_us"].items())
    lines += ["", f"CPU time of the queue itself, a request, by clients (real time): {overhead}.", ""]
    return "\n".join(lines)


def table(
    found: dict[str, Any],
    rows: list[dict[str, Any]],
    load: str,
    rules: tuple[str, ...],
    cell: Callable[[dict[str, Any]], str],
) -> list[str]:
    """A line for each model and load, a column for each rule."""
    lines = [
        f"| model: ms of a batch of 1, 2, 4, 8 | {load} | " + " | ".join(rules) + " |",
        "|---" * (2 + len(rules)) + "|",
    ]
    for name, sizes in found["batch_ms"].items():
        first = f"{name}: " + ", ".join(f"{ms:.2f}" for ms in sizes.values())
        for value in dict.fromkeys(r[load] for r in rows):
            row = {r["rule"]: r for r in rows if r["model"] == name and r[load] == value}
            lines.append(f"| {first} | {value} | " + " | ".join(cell(row[rule]) for rule in rules) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
