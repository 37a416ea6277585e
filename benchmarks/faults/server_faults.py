"""Faults of one server: killed workers, slow and silent clients, a long soak beside a server that leaks.

Each function starts the server that it needs, does the damage while a good client looks on, and judges goals that were
set beforehand; `faults` runs them beside those of `scenarios`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import combinations
from typing import Any

from ..hardening.hostile import ask, kinds
from ..harness.exchange import exchange, post, seconds_until
from ..harness.load import IMAGES, Sample, loaded, quantile
from ..harness.processes import children, rss_mb
from .scenarios import Bench, Replica, Result

CROWD = 500  # slow clients, and as many silent ones
WINDOWS = 12  # of the time; the least memory of each is what a slope is put through
SLOW = ("WebP, transparent", "19 scans", "16 bits", "in a form")  # honest work of seconds, which would be all there is


async def kill_worker(bench: Bench) -> Result:
    """SIGKILL to one of two workers behind one port, again and again; the supervisor replaces it."""
    result = Result(
        f"kill -9 of one of two workers, {bench.kills} times; 8 callers, 4 keep their connection; in "
        "flight is what had begun when the process was gone"
    )
    flying, failed, backs = [], [], []
    with Replica(bench.folder, repository=bench.repository, workers=2) as server:
        await server.until_ready()

        async def both() -> bool:
            return (await server.metrics()).get("awnet_workers_up") == 2

        await seconds_until(both, 60, server)
        async with loaded(server.port, keeping=4, opening=4, pause=0.1) as load:
            await asyncio.sleep(1)
            for _ in range(bench.kills):
                oldest = min(children(server.pid))
                first, begun = len(load.samples), time.monotonic()
                os.kill(oldest, signal.SIGKILL)
                while oldest in children(server.pid):
                    await asyncio.sleep(0.001)
                gone = time.monotonic()
                await asyncio.sleep(0.1)
                await seconds_until(both, 60, server)
                backs.append(time.monotonic() - begun)
                await asyncio.sleep(2.2)  # one that dies younger counts as one that cannot live, and is awaited
                flying.append(sum(sample.begun <= gone for sample in load.samples[first:]))
                failed.append(sum(sample.outcome != "ok" for sample in load.samples[first:]))
        outcomes = load.counts()
    result.figures = {
        "requests": outcomes.total(),
        "outcomes": dict(outcomes),
        "in_flight_at_each_kill": flying,
        "errors_of_each_kill": failed,
        "both_again_p50_seconds": round(quantile(backs, 0.5), 2),
        "both_again_max_seconds": round(max(backs), 2),
    }
    surplus = sum(max(0, errors - room) for errors, room in zip(failed, flying, strict=True))
    result.goal("errors <= in flight, every time", f"{sum(failed)} errors, {sum(flying)} in flight", surplus == 0)
    result.goal("no wrong answer", outcomes["wrong"], outcomes["wrong"] == 0)
    return result


def spread(samples: Sequence[Sample], since: float = 0.0, until: float = float("inf")) -> dict[str, Any]:
    """What the good client saw of the requests that began in between."""
    samples = [sample for sample in samples if since <= sample.begun < until]
    seconds = [sample.ended - sample.begun for sample in samples]
    return {
        "requests": len(samples),
        "failed": sum(sample.outcome != "ok" for sample in samples),
        "p50_ms": round(1000 * quantile(seconds, 0.5), 1),
        "p99_ms": round(1000 * quantile(seconds, 0.99), 1),
    }


async def crowd(bench: Bench) -> Result:
    """500 clients that send a byte a second and 500 that say nothing, beside a good one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    result = Result(
        f"{CROWD} clients that send a byte a second and {CROWD} silent ones; a good client before and beside"
    )
    settings: dict[str, Any] = {"max_connections_per_client": 0, "connections_per_second_per_client": 0}
    settings |= {"header_seconds": 60, "body_seconds": 60}
    span = min(10.0, bench.seconds)
    with Replica(bench.folder, repository=bench.repository, **settings) as server:
        await server.until_ready()
        async with loaded(server.port, keeping=1, opening=1, pause=0.05, images=[IMAGES[0]]) as load:
            begun = time.monotonic()
            await asyncio.sleep(span)
            async with _crowd(server.port) as writers:
                crowded = time.monotonic()
                await asyncio.sleep(span)
                still = sum(not writer.is_closing() for writer in writers)
        alone, beside = spread(load.samples, begun, crowded), spread(load.samples, crowded)
    result.figures = {"alone": alone, "beside": beside, "connections_still_open": still}
    result.goal("the good client: 0 failed", beside["failed"], beside["failed"] == 0)
    ratio = beside["p50_ms"] / alone["p50_ms"]
    result.goal("its p50 at most 1.2 times that of before", f"{ratio:.2f}", ratio <= 1.2)
    return result


@contextlib.asynccontextmanager
async def _crowd(port: int) -> AsyncIterator[list[asyncio.StreamWriter]]:
    links = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2 * CROWD)]
    writers = [writer for _, writer in links]
    body = IMAGES[0]
    for number, writer in enumerate(writers[:CROWD]):
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + (b"\r\n" if number % 2 else b"X-"))

    async def trickle() -> None:
        while True:
            for writer in writers[:CROWD]:
                writer.write(b"a")
            await asyncio.sleep(1)

    task = asyncio.create_task(trickle())
    try:
        yield writers
    finally:
        task.cancel()
        for writer in writers:
            writer.close()


# Memory.

# A server that keeps every answer's image: what the method of `soak` must find.
LEAK = """
import sys
from server.service import service
kept, run = [], service.Service.run
async def leaking(self, lease, images, terms, *more, **named):
    kept.append(bytearray(100_000))
    return await run(self, lease, images, terms, *more, **named)
service.Service.run = leaking
from server.__main__ import main
sys.exit(main([]))
"""


class _Leaking(Replica):
    def start(self) -> None:
        self.command = [sys.executable, "-c", LEAK]
        super().start()


async def soak(bench: Bench) -> Result:
    """Requests of good and hostile clients for long, and whether memory grows; a leaking server as the control."""
    result = Result(
        f"at most {bench.requests:,} requests in {bench.soak_seconds:g} s, a tenth of them hostile; memory of the "
        "server's process; then a server that keeps 100 kB of each request"
    )
    for name, kind, share in (("server", Replica, 1.0), ("leaking control", _Leaking, 0.15)):
        with kind(bench.folder, repository=bench.repository) as server:
            await server.until_ready()
            found = await _soak(server, int(share * bench.requests), share * bench.soak_seconds)
        result.figures[name] = found
    steady, leaking = result.figures["server"], result.figures["leaking control"]
    limit = 0.1
    result.goal(
        f"memory grows by at most {limit:g} MB for 1,000 requests, after the first fifth",
        f"{steady['mb_per_1000']:.3f} MB ({steady['requests']:,} requests)",
        steady["mb_per_1000"] <= limit,
    )
    result.goal("no 500, none without an answer", steady["bad"] or "none", not steady["bad"])
    result.goal(
        "descriptors do not grow", steady["descriptors"], steady["descriptors"][1] <= steady["descriptors"][0] + 4
    )
    result.goal(
        "the leaking control is found", f"{leaking['mb_per_1000']:.1f} MB for 1,000", leaking["mb_per_1000"] > limit
    )
    return result


async def _soak(server: Replica, requests: int, seconds: float) -> dict[str, Any]:
    hostile = [kind for kind in kinds() if not any(slow in kind.name for slow in SLOW)]
    good = [post(image, keep=False) for image in IMAGES]
    outcomes: Counter[str] = Counter()
    memory: list[tuple[int, float, int]] = []  # (requests, MB, descriptors)
    decoders: list[float] = []  # MB, which come and go with hostile images
    end = time.monotonic() + seconds

    async def look() -> None:
        while True:
            memory.append((outcomes.total(), rss_mb(server.pid), len(os.listdir(f"/proc/{server.pid}/fd"))))
            decoders.append(sum(map(rss_mb, children(server.pid))))
            await asyncio.sleep(seconds / 200)

    async def caller(number: int) -> None:
        turn = number
        while outcomes.total() < requests and time.monotonic() < end:
            turn += 1
            if turn % 10 == 0:
                outcomes["hostile " + await ask(server.port, hostile[turn // 10 % len(hostile)])] += 1
                continue
            try:
                status, _ = await exchange(server.port, good[turn % len(good)], 60)
                outcomes[str(status)] += 1
            except (OSError, EOFError, TimeoutError) as error:
                outcomes[type(error).__name__] += 1

    looking = asyncio.create_task(look())
    await asyncio.gather(*(caller(number) for number in range(8)))
    looking.cancel()
    warm = [sample for sample in memory if sample[0] >= outcomes.total() / 5]
    # Bodies of megabytes come and go; what stays is below them.
    size = max(1, len(warm) // WINDOWS)
    floor = [min(warm[at : at + size], key=lambda sample: sample[1]) for at in range(0, len(warm) - size + 1, size)]
    # The median of all pairs (Theil and Sen): one step, as an allocator takes, is no slope.
    pairs = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(floor, 2) if b[0] > a[0]]
    slope = 1000 * statistics.median(pairs)
    bad = {k: n for k, n in outcomes.items() if k.split()[-1] in ("500", "closed") or not k.split()[-1].isdigit()}
    return {
        "requests": outcomes.total(),
        "outcomes": dict(outcomes),
        "bad": bad,
        "mb_per_1000": round(slope, 4),
        "mb": [round(mb, 1) for _, mb, _ in floor],
        "decoders_mb_at_most": round(max(decoders), 1),
        "descriptors": [warm[0][2], warm[-1][2]],
    }


SERVER_FAULTS: dict[str, tuple[Callable[[Bench], Awaitable[Result]], Sequence[str]]] = {
    "kill-worker": (kill_worker, ()),
    "crowd": (crowd, ()),
    "soak": (soak, ()),
}
