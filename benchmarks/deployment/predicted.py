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
from awnet.planning.fleet import Client, Outcome, simulate
from awnet.planning.measuring import Spent, measured, spent
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

    @property
    def times(self) -> str:
        """Where the report has the service times that were measured on the same cores."""
        return "times" if self.own else "times_shared"


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
        request = post("/predict", image, {"Content-Type": "image/png"})
        times = {}
        for layout in list(LAYOUTS.values())[:2]:
            os.sched_setaffinity(0, cores[1:] if layout.own else cores)
            server = servers[layout][0]
            with Asker([("127.0.0.1", server.port)], request) as asker:
                times[layout.times] = measured(asker, server.pid, server.url, options.measure_seconds, about, ready)
        samples: dict[tuple[str, float], list[dict[str, Any]]] = {}
        for turn in range(options.rounds):
            for name, layout in LAYOUTS.items():
                os.sched_setaffinity(0, cores[1:] if layout.own else cores)
                for share in SHARES:
                    rate = share * capacity(times[layout.times], layout)
                    got = offered(servers[layout], request, rate, options.seconds, seed=100 * turn)
                    samples.setdefault((name, share), []).append({"rate": rate, **got})
        os.sched_setaffinity(0, cores)
    rows = [{"layout": name, "share": share, **together(rounds)} for (name, share), rounds in sorted(samples.items())]
    return {name: service_times.written(each) for name, each in times.items()} | {"rows": rows}


def capacity(times: ServiceTimes, layout: Layout) -> float:
    """Requests a second that it can do at most, beside a client of a tenth of a millisecond where that shares cores."""
    cost = 1 / times.capacity(1, 8) + (0.0 if layout.own else 1e-4)
    return layout.cores / cost


def offered(servers: list[Server], request: bytes, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """An open loop; the first tenth of it is not counted in latencies."""
    pids = [server.pid for server in servers]

    def spending() -> list[Spent]:
        return [spent(server.pid, server.url) for server in servers]

    with Asker([("127.0.0.1", server.port) for server in servers], request) as asker:
        before, others, client, begun = spending(), busy_seconds(pids), time.process_time(), time.perf_counter()
        samples = asker.offered(arrivals("poisson", rate, seconds, seed))
        client, took = time.process_time() - client, time.perf_counter() - begun
        others = busy_seconds(pids) - others
        server = [after.plus(first, -1) for first, after in zip(before, spending(), strict=True)]
    counted = [sample for sample in samples if sample.due > begun + seconds / 10 and sample.status == 200]
    stages = [sample.stages() for sample in counted]
    return {
        "seconds": [sample.seconds for sample in counted],
        "queue": [stage["queue"] for stage in stages],
        "inference": [stage["inference"] for stage in stages],
        "failed": sum(sample.status != 200 for sample in samples),
        "client_cpu": client / len(samples),
        "cpu": sum(each.loop + each.others for each in server) / len(samples),
        "batch": sum(each.images for each in server) / sum(each.batches for each in server),
        "rps": len(samples) / max(took, seconds),
        "others": max(0.0, others) / took,
    }


def together(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """What was measured of one load in all rounds."""

    def all_of(key: str) -> list[float]:
        return [value for each in rounds for value in each[key]]

    def mean(key: str) -> float:
        return statistics.mean(each[key] for each in rounds)

    return {
        "rate": rounds[0]["rate"],
        "client_cpu_ms": 1000 * mean("client_cpu"),
        "failed": sum(each["failed"] for each in rounds),
        "others_cores": mean("others"),
        "measured": {"rps": mean("rps")}
        | figures(all_of("seconds"), all_of("queue"), all_of("inference"))
        | {"cpu_ms": 1000 * mean("cpu"), "batch": mean("batch")},
    }


def busy_seconds(pids: list[int]) -> float:
    """Core seconds that the machine has spent on other processes than these and this one."""
    fields = Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:]
    # User, nice, system, interrupts of both kinds, stolen by other machines: without idle and waiting for disks.
    ticks = sum(int(fields[at]) for at in (0, 1, 2, 5, 6, 7))
    return ticks / os.sysconf("SC_CLK_TCK") - sum(map(cpu_seconds, pids)) - time.process_time()


def predict(rows: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """Put beside each row what is predicted of it, and how far that is off."""
    for row in rows:
        layout, seconds = LAYOUTS[row["layout"]], found["seconds"]
        outcomes = [simulated(layout, found, row["rate"], row["client_cpu_ms"] / 1000, seconds, seed) for seed in SEEDS]
        counted = [request for outcome in outcomes for request in outcome.answered(since=seconds / 10)]
        requests = sum(len(outcome.requests) for outcome in outcomes)
        server = sum(outcome.core_seconds for outcome in outcomes) / requests
        row["predicted"] = (
            {"rps": statistics.mean(len(o.requests) / max(seconds, o.seconds) for o in outcomes)}
            | figures(
                [request.seconds for request in counted],
                [request.queue for request in counted],
                [request.inference for request in counted],
            )
            | {
                "cpu_ms": 1000 * server - (0.0 if layout.own else row["client_cpu_ms"]),
                "batch": sum(o.images for o in outcomes) / sum(o.batches for o in outcomes),
            }
        )
        row["off"] = {key: row["predicted"][key] / real - 1 for key, real in row["measured"].items()}


def simulated(
    layout: Layout, found: dict[str, Any], rate: float, client_seconds: float, seconds: float, seed: int
) -> Outcome:
    """A load on this layout. What the client takes was there when times were measured, without a core of ours."""
    times = service_times.parsed(found[layout.times])
    arriving = arrivals("poisson", rate, seconds, seed)
    if layout.own:
        return simulate(arriving, times, layout.shape, seed=seed)
    times = dataclasses.replace(times, fixed=max(0.0, times.fixed - client_seconds))
    client = Client(client_seconds / 2, client_seconds / 2)
    return simulate(arriving, times, layout.shape, seed=seed, client=client)


def figures(seconds: list[float], queue: list[float], inference: list[float]) -> dict[str, float]:
    """Of answers: quantiles, and the mean of each stage."""
    rest = [whole - q - i for whole, q, i in zip(seconds, queue, inference, strict=True)]
    stages = {"queue": queue, "inference": inference, "rest": rest}
    return quantiles(sorted(seconds)) | {f"{name}_ms": 1000 * statistics.mean(each) for name, each in stages.items()}


def quantiles(ordered: list[float]) -> dict[str, float]:
    return {"p50_ms": 1000 * quantile(ordered, 0.5), "p99_ms": 1000 * quantile(ordered, 0.99)}
