"""Our own latency at 70 % of what was measured as capacity: calm, with `/metrics` scraped, and across a reload.

Requests come in an open loop with independent (Poisson) arrivals, and count from when they were due. The three take
turns, so that a noisy moment meets each of them alike.
"""

from __future__ import annotations

import json
import math
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from awnet.command.arrivals import arrivals
from awnet.planning.asking import Asker, Sample, post
from export.repository.repository import publish

from ..harness.closed_loop import Figures, rotated
from ..harness.load import quantile
from ..harness.processes import Server, free_port
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
        servers = {n: stack.enter_context(Ours(model, n, scratch)) for n in capacities}
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


class Ours(Server):
    """A server of a repository of its own, whose admin port reloads."""

    def __init__(self, model: Path, workers: int, scratch: Path) -> None:
        self._model, self._name = model.read_bytes(), model.parents[1].name
        self._repository = Path(tempfile.mkdtemp(dir=scratch))
        publish(self._model, self._repository, name=self._name)
        self._admin = free_port()
        given = {"repository": self._repository, "model": self._name, "workers": workers, "poll_seconds": 0}
        super().__init__(scratch, **given, admin_port=self._admin, drain_seconds=0, log_level="warning")

    def prepare(self) -> None:
        """Publish the same model as the next version; nobody looks before `reload`."""
        publish(self._model, self._repository, name=self._name)

    def reload(self) -> tuple[float, float]:
        """Have it taken; when that began and ended."""
        begun = time.perf_counter()
        request = urllib.request.Request(f"http://127.0.0.1:{self._admin}/admin/reload", b"", method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            if [change["result"] for change in json.load(answer)["changes"]] != ["loaded"]:
                raise RuntimeError("a reload took nothing")
        return begun, time.perf_counter()


def calm(server: Ours, loop: Loop, seconds: float) -> Figures:
    return latencies(*loop())


def scraped(server: Ours, loop: Loop, seconds: float) -> Figures:
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


def reloaded(server: Ours, loop: Loop, seconds: float) -> Figures:
    """One reload, a third of the time in; `under_ms` is p99 of the requests that were due while it went on."""
    server.prepare()

    def reload() -> tuple[float, float]:
        time.sleep(seconds / 3)
        return server.reload()

    with ThreadPoolExecutor(1) as pool:
        span = pool.submit(reload)
        samples, cpu = loop()
        first, last = span.result()
    under = [sample.seconds for sample in samples if first <= sample.due <= last]
    return latencies(samples, cpu) | {"reload_ms": 1000 * (last - first), "under_ms": 1000 * quantile(under, 0.99)}


def latencies(samples: list[Sample], client_cpu: float) -> Figures:
    """Quantiles in ms, requests without an answer, and what a request took of this client's core."""
    seconds = [sample.seconds if sample.status == 200 else math.inf for sample in samples]
    quantiles = {f"{name}_ms": 1000 * quantile(seconds, share) for name, share in QUANTILES.items()}
    failed = sum(map(math.isinf, seconds))
    return quantiles | {"failed": failed, "client_cpu_ms": 1000 * client_cpu / max(1, len(seconds))}


WAYS = {CALM: calm, SCRAPED: scraped, RELOADED: reloaded}
