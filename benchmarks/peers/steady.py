"""Our own latency at 70 % of what was measured as capacity: calm, with `/metrics` scraped, and across a reload.

Requests come in an open loop with independent (Poisson) arrivals, and count from when they were due. The three take
turns, so that a noisy moment meets each of them alike.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from awnet.command.arrivals import arrivals
from awnet.planning.asking import Asker, Sample, post

from ..harness.closed_loop import Figures, rotated
from ..harness.load import quantile
from ..harness.reloading import Reloading
from .contestants import Post

SHARE = 0.7  # of the requests a second that were measured in a closed loop
SCRAPES = 10  # a second
CALM, SCRAPED, RELOADED = "calm", "scraped", "reload"
QUANTILES = {"p50": 0.5, "p99": 0.99, "most": 1.0}
Samples = dict[str, dict[str, list[Figures]]]
Loop = Callable[[], tuple[list[Sample], float]]


def measure(model: Path, sent: Post, capacities: dict[int, float], rounds: int, seconds: float) -> Samples:
    """Latencies by number of processes and what went on beside, a row a round.

    Args:
        capacities: by number of processes, requests a second. Only one process is scraped and reloaded.
        seconds: of a measurement.
    """
    samples: Samples = {}
    request = post(sent.path, sent.body, dict(sent.headers))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            n: stack.enter_context(Reloading(model, scratch, workers=n, log_level="warning")) for n in capacities
        }
        askers = {n: stack.enter_context(Asker([("127.0.0.1", server.port)], request)) for n, server in servers.items()}
        for n, server in servers.items():
            server.wait_ready(180)
            askers[n].offered(arrivals("poisson", 200, 1))
        turns = [
            (turn, n, what)
            for turn in range(rounds)
            for n in capacities
            for what in rotated(list(WAYS) if n == 1 else [CALM], turn)
        ]
        for turn, n, what in tqdm(turns, desc="at 70 % load"):

            def loop(asker: Asker = askers[n], rate: float = SHARE * capacities[n], seed: int = turn) -> Any:
                spent = time.process_time()
                samples = asker.offered(arrivals("poisson", rate, seconds, seed))
                return samples, time.process_time() - spent

            samples.setdefault(str(n), {}).setdefault(what, []).append(WAYS[what](servers[n], loop, seconds))
    return samples


def calm(server: Reloading, loop: Loop, seconds: float) -> Figures:
    return latencies(*loop())


def scraped(server: Reloading, loop: Loop, seconds: float) -> Figures:
    """A thread asks for the metrics; the answers are read and dropped."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(1 / SCRAPES):
            with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
                answer.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        return latencies(*loop())
    finally:
        over.set()
        thread.join()


def reloaded(server: Reloading, loop: Loop, seconds: float) -> Figures:
    """One reload, a third of the time in; `under_ms` is p99 of the requests that were due while it went on."""
    with server.reloads([seconds / 3]) as done:
        samples, cpu = loop()
        (span,) = done.result()
    under = [sample.seconds for sample in span.of(samples)]
    reload_ms = 1000 * (span.ended - span.begun)
    return latencies(samples, cpu) | {"reload_ms": reload_ms, "under_ms": 1000 * quantile(under, 0.99)}


def latencies(samples: list[Sample], client_cpu: float) -> Figures:
    """Quantiles in ms, requests without an answer, and what a request took of this client's core."""
    seconds = [sample.seconds if sample.status == 200 else math.inf for sample in samples]
    quantiles = {f"{name}_ms": 1000 * quantile(seconds, share) for name, share in QUANTILES.items()}
    failed = sum(map(math.isinf, seconds))
    return quantiles | {"failed": failed, "client_cpu_ms": 1000 * client_cpu / max(1, len(seconds))}


WAYS = {CALM: calm, SCRAPED: scraped, RELOADED: reloaded}
