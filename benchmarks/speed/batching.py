"""What waiting for fuller batches is worth: the server's scheduler in virtual time, and its cost in real time.

* Closed loops of 2, 8 and 32 clients against two workers; HTTP is one thread that spends a fixed time on a request.
  Each image is decoded and run for as long as its batch's size takes, give or take 10 %.
* Three rules: never wait; a window (the last idle worker always waits its full length for a full batch); and the
  server's own (`server.engines.scheduling`).
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
DECODE_SECONDS, HTTP_SECONDS = 0.27e-3, 0.45e-3  # of one image; HTTP on the event loop's one thread
EVEN = {1: 4.0e-3, 2: 4.2e-3, 4: 4.5e-3, 8: 5.0e-3}
DELAYS, CLIENTS = (0.001, 0.005), (2, 8, 32)
RULES = ("never", *(f"{rule} {1000 * delay:g} ms" for delay in DELAYS for rule in ("window", "server's")))


def main() -> int:
    parser = report.parser("speed.batching", __doc__, EXAMPLES)
    parser.add_argument("--model", type=Path, default=report.bundled_model() / "model.onnx")
    parser.add_argument("--seconds", type=float, default=3.0, help="of virtual time [3]")
    report.add_out(parser, "batching")
    options = parser.parse_args()
    models = {"given": seconds_by_size(options.model), "even": EVEN}
    rows = [
        {"model": name, "clients": clients, "rule": rule, **closed_loop(cost, clients, rule, options.seconds)}
        for name, cost in models.items()
        for clients in CLIENTS
        for rule in RULES
    ]
    overhead = {clients: asyncio.run(cpu_microseconds(clients)) for clients in (1, 8)}
    found = {
        "what": "virtual time: requests/s and median ms by rule; overhead: CPU us a request",
        "machine": report.loaded_machine(),
        "batch_ms": {name: {size: 1000 * s for size, s in cost.items()} for name, cost in models.items()},
        "rows": rows,
        "overhead_us": overhead,
    }
    text = markdown(found)
    report.publish(options.out, found, text)
    print(text)
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


def closed_loop(cost: dict[int, float], clients: int, rule: str, seconds: float) -> dict[str, float]:
    """Requests a second and median milliseconds of `clients` that send again when they are answered."""
    kind, _, length = rule.partition(" ")
    delay = float(length.split()[0]) / 1000 if length else 0.0
    window = delay if kind == "window" else 0.0
    scheduler: Scheduler[Job] = Scheduler(
        workers=WORKERS, max_batch=MOST, capacity=10_000, delay=0.0 if window else delay
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
    idle = WORKERS

    def at(when: float, what: Callable[[], None]) -> None:
        heapq.heappush(events, (when, next(order), what))

    def send() -> None:
        nonlocal front
        front = max(now, front) + HTTP_SECONDS * rng.uniform(0.7, 1.3)
        at(front, arrive)

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
            at(now + run + DECODE_SECONDS * size, partial(end, batch, run))

    def end(batch: Batch[Job], run: float) -> None:
        nonlocal idle
        idle += 1
        scheduler.done(batch, now, [(len(batch.parts), run)])
        for job, _ in batch.parts:
            latencies.append(now - job.arrived)
            if now < seconds:
                send()
        work()

    for _ in range(clients):
        send()
    while events:
        now, _, what = heapq.heappop(events)
        what()
    return {"per_second": len(latencies) / now, "p50_ms": 1000 * statistics.median(latencies)}


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
        "# What waiting for fuller batches is worth",
        "",
        f"Virtual time, {WORKERS} workers, closed loop; requests/s (median ms in the engine). "
        "Made by `python -m benchmarks.speed.batching`.",
        "",
        "| model: ms of a batch of 1, 2, 4, 8 | clients | " + " | ".join(RULES) + " |",
        "|---|---" + "|---" * len(RULES) + "|",
    ]
    for name, sizes in found["batch_ms"].items():
        for clients in CLIENTS:
            row = {r["rule"]: r for r in found["rows"] if r["model"] == name and r["clients"] == clients}
            cells = [f"{row[rule]['per_second']:.0f} ({row[rule]['p50_ms']:.1f})" for rule in RULES]
            first = f"{name}: " + ", ".join(f"{ms:.2f}" for ms in sizes.values())
            lines.append(f"| {first} | {clients} | " + " | ".join(cells) + " |")
    told = ", ".join(f"{us:.0f} us at {clients}" for clients, us in found["overhead_us"].items())
    lines += ["", f"CPU time of the queue itself, a request, by clients (real time): {told}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
