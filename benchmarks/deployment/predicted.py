"""Real processes beside what the simulation predicts of them; see `benchmarks.deployment.simulation`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from awnet.command.arrivals import arrivals
from awnet.planning import times as service_times
from awnet.planning.asking import Asker, post
from awnet.planning.fleet import Client, simulate
from awnet.planning.measuring import measured
from awnet.planning.replica import Shape
from awnet.planning.sizing import quantile
from awnet.planning.times import ServiceTimes

from ..harness import report
from ..harness.closed_loop import uploaded
from ..harness.processes import Server, cpu_seconds

SHARES = (0.3, 0.5, 0.7, 0.85)
SEEDS = range(1, 6)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Processes on cores of this machine.

    Attributes:
        own: the server has a core of its own, and the client the other.
    """

    processes: int
    cores: int
    own: bool = False

    @property
    def shape(self) -> Shape:
        """To the simulation, processes that share cores are workers."""
        return Shape(self.cores, self.processes, capacity=256 * self.processes)


LAYOUTS = {
    "one process, a core of its own": Layout(1, 1, own=True),
    "one process, two cores with the client": Layout(1, 2),
    "two processes, two cores with the client": Layout(2, 2),
}


def measure(options: argparse.Namespace, cores: list[int]) -> dict[str, Any]:
    """What a request costs, and real processes beside what is predicted of them."""
    image = uploaded(None)
    with ExitStack() as stack:

        def serving(on: list[int], threads: int) -> Server:
            os.sched_setaffinity(0, on)
            return stack.enter_context(Server(log_level="warning", drain_seconds=0, threads=threads))

        begun = time.monotonic()
        alone = serving(cores[:1], 1)
        alone.wait_ready()
        ready = time.monotonic() - begun
        servers = {
            layout: [alone]
            if layout.own
            else [serving(cores, layout.cores // layout.processes) for _ in range(layout.processes)]
            for layout in LAYOUTS.values()
        }
        for each in servers.values():
            for server in each:
                server.wait_ready()
        day = datetime.now(UTC).date().isoformat()
        about = {
            "told": f"{report.processor()}, the bundled model, a {len(image)} byte PNG, {day}",
            "command": "python -m benchmarks.deployment.simulation",
        }
        os.sched_setaffinity(0, cores[1:])

        request = post("/predict", image, {"Content-Type": "image/png"})
        with Asker([("127.0.0.1", alone.port)], request) as asker:
            times = measured(asker, alone.pid, alone.url, options.measure_seconds, about, ready)
        samples: dict[tuple[str, float], dict[str, Any]] = {}
        for turn in range(options.rounds):
            for name, layout in LAYOUTS.items():
                os.sched_setaffinity(0, cores[1:] if layout.own else cores)
                ports = [server.port for server in servers[layout]]
                for share in SHARES:
                    rate = share * capacity(times, layout)
                    pids = [server.pid for server in servers[layout]]
                    got = offered(ports, pids, request, rate, options.seconds, seed=100 * turn)
                    kept = samples.setdefault(
                        (name, share), {"rate": rate, "latencies": [], "cpu": [], "rps": [], "others": [], "failed": 0}
                    )
                    for key, value in got.items():
                        kept[key] += value
        os.sched_setaffinity(0, cores)
    rows = [row(name, share, kept, times, options.seconds) for (name, share), kept in sorted(samples.items())]
    return {"times": service_times.written(times), "rows": rows}


def capacity(times: ServiceTimes, layout: Layout) -> float:
    """Requests a second that it can do at most, beside a client of a tenth of a millisecond where that shares cores."""
    cost = 1 / times.capacity(1, 8) + (0.0 if layout.own else 1e-4)
    return layout.cores / cost


def offered(
    ports: list[int], pids: list[int], request: bytes, rate: float, seconds: float, seed: int
) -> dict[str, Any]:
    """An open loop; the first tenth of it is not counted. `cpu` is the client's, a request; `others`: cores."""
    with Asker([("127.0.0.1", port) for port in ports], request) as asker:
        others, spent, begun = busy_seconds(pids), time.process_time(), time.perf_counter()
        samples = asker.offered(arrivals("poisson", rate, seconds, seed))
        spent, took = time.process_time() - spent, time.perf_counter() - begun
        others = busy_seconds(pids) - others
    counted = [sample for sample in samples if sample.due > begun + seconds / 10]
    return {
        "latencies": [sample.seconds for sample in counted if sample.status == 200],
        "failed": sum(sample.status != 200 for sample in samples),
        "cpu": [spent / len(samples)],
        "rps": [len(samples) / max(took, seconds)],
        "others": [max(0.0, others) / took],
    }


def busy_seconds(pids: list[int]) -> float:
    """Core seconds that the machine has spent on other processes than these and this one."""
    fields = Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:]
    ticks = sum(
        int(fields[at]) for at in (0, 1, 2, 5, 6, 7)
    )  # user, nice, system, interrupts, stolen by other machines
    return ticks / os.sysconf("SC_CLK_TCK") - sum(map(cpu_seconds, pids)) - time.process_time()


def row(name: str, share: float, kept: dict[str, Any], times: ServiceTimes, seconds: float) -> dict[str, Any]:
    """One load: measured, predicted, and how far apart these are."""
    layout = LAYOUTS[name]
    client = None
    if not layout.own:
        half = statistics.mean(kept["cpu"]) / 2
        client = Client(half, half)
        times = dataclasses.replace(
            times, fixed=max(0.0, times.fixed - 2 * half)
        )  # it was there when `fixed` was taken
    outcomes = [
        simulate(arrivals("poisson", kept["rate"], seconds, seed), times, layout.shape, seed=seed, client=client)
        for seed in SEEDS
    ]
    predicted = {"rps": statistics.mean(len(o.requests) / max(seconds, o.seconds) for o in outcomes)} | quantiles(
        sorted(latency for o in outcomes for latency in o.latencies(since=seconds / 10))
    )
    real = {"rps": statistics.mean(kept["rps"])} | quantiles(sorted(kept["latencies"]))
    return {
        "layout": name,
        "share": share,
        "rate": kept["rate"],
        "client_cpu_ms": 1000 * statistics.mean(kept["cpu"]),
        "failed": kept["failed"],
        "others_cores": statistics.mean(kept["others"]),
        "measured": real,
        "predicted": predicted,
        "off": {key: predicted[key] / real[key] - 1 for key in real},
    }


def quantiles(ordered: list[float]) -> dict[str, float]:
    return {"p50_ms": 1000 * quantile(ordered, 0.5), "p99_ms": 1000 * quantile(ordered, 0.99)}
