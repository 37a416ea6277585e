"""What several workers cost and give: memory, CPU time a request and throughput of `python -m server --workers N`.

The servers run side by side and are asked in turn, in rounds whose order rotates; figures are medians over rounds. wrk
is the client and shares the cores. Memory is told twice: `rss` counts shared pages in each process, `pss` once.

Afterwards a server with the most workers is run alone, and under callers who wait for each answer its workers are
killed (SIGKILL) one after the other: how many requests failed, and after how long all workers were up again.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..harness import report
from ..harness.closed_loop import add_model, add_rounds, chosen, lua, medians, rotated, uploaded, wrk
from ..harness.processes import Server, children, family, memory_mb
from ..harness.prometheus import scraped

EXAMPLES = """examples:
  python -m benchmarks.deployment.workers                           one and two workers, 8 clients, about a minute
  python -m benchmarks.deployment.workers --workers 1 2 4 --clients 1 8 32
  python -m benchmarks.deployment.workers --kills 50                and kill fifty times instead of ten
"""


def main() -> int:
    parser = report.parser("deployment.workers", __doc__, EXAMPLES)
    add_model(parser)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="[1 2]")
    add_rounds(parser, [8])
    parser.add_argument("--kills", type=int, default=10, help="of workers, 0 for none [10]")
    parser.add_argument("--callers", type=int, default=4, help="who wait for answers meanwhile [4]")
    report.add_out(parser, "workers")
    options = parser.parse_args()
    if report.missing("wrk"):
        return 0
    found = measure(options)
    if options.kills and max(options.workers) > 1:
        found["kills"] = kill(options)
    report.conclude(options.out, found, markdown(found))
    return 0


def serving(workers: int, log_level: str, options: argparse.Namespace) -> Server:
    """A server of so many workers; it does not wait for balancers when it ends."""
    return Server(workers=workers, log_level=log_level, drain_seconds=0, **chosen(options))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; returns the report."""
    found: dict[str, Any] = {
        "machine": report.loaded_machine(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "of": {},
    }
    samples: dict[tuple[int, int], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        script = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "post.lua"
        script.write_bytes(lua(uploaded(None)))
        servers = {n: stack.enter_context(serving(n, "warning", options)) for n in options.workers}
        for workers, server in servers.items():
            server.wait_ready()
            while workers > 1 and scraped(server.port).get("awnet_workers_up") != workers:
                pass
            wrk(server.port, max(options.clients), 1, script)  # warm
        turns = [(workers, clients) for clients in options.clients for workers in options.workers]
        for turn in range(options.rounds):
            for workers, clients in rotated(turns, turn):
                server = servers[workers]
                figures = wrk(server.port, clients, options.seconds, script, [server.pid, *children(server.pid)])
                samples.setdefault((workers, clients), []).append(figures)
        for workers, server in servers.items():
            of = family(server.pid)
            found["of"][workers] = {
                "rss_mb": {pid: memory_mb(pid, "Rss") for pid in of},
                "pss_mb": sum(memory_mb(pid, "Pss") for pid in of),
                "clients": {clients: medians(samples[workers, clients]) for clients in options.clients},
            }
    found["machine"]["load_after"] = list(os.getloadavg())
    return found


def kill(options: argparse.Namespace) -> dict[str, Any]:
    """Workers killed in turn: {workers, callers, answered, kills: [{failed, seconds}]}."""
    workers, done = max(options.workers), threading.Event()
    image = uploaded(None)
    counts = {"answered": 0, "failed": 0}
    lock = threading.Lock()

    def call() -> None:
        request = urllib.request.Request(
            f"http://{server.address}/predict", data=image, headers={"content-type": "image/png"}
        )
        while not done.is_set():
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    answer.read()
                outcome = "answered"
            except OSError:  # refused, reset, timed out, or a status that says failure
                outcome = "failed"
            with lock:
                counts[outcome] += 1

    def until(up: bool, limit: float) -> None:
        """Until all workers are up, or not."""
        deadline = time.monotonic() + limit
        while (scraped(server.port).get("awnet_workers_up") == workers) != up and time.monotonic() < deadline:
            time.sleep(0.02)

    found: dict[str, Any] = {"workers": workers, "callers": options.callers, "kills": []}
    with serving(workers, "error", options) as server:
        server.wait_ready()
        until(True, 60)
        threads = [threading.Thread(target=call) for _ in range(options.callers)]
        for thread in threads:
            thread.start()
        try:
            for i in range(options.kills):
                before, started = counts["failed"], time.monotonic()
                os.kill(children(server.pid)[i % workers], signal.SIGKILL)
                until(False, 2)
                until(True, 60)
                seconds = time.monotonic() - started
                found["kills"].append({"failed": counts["failed"] - before, "seconds": round(seconds, 2)})
                time.sleep(0.5)
        finally:
            done.set()
            for thread in threads:
                thread.join()
    return found | {"answered": counts["answered"]}


def markdown(found: dict[str, Any]) -> str:
    """The report for people."""
    about = found["machine"]
    load = [f"{about[when][0]:.1f}" for when in ("load_before", "load_after")]
    lines = [
        "# One worker and several",
        "",
        f"`python -m benchmarks.deployment.workers`: {about['cpu']}, {about['cores']} core(s) for servers and "
        "client together.",
        f"Load average {load[0]} before and {load[1]} after; the rest of it was other work there.",
        f"Medians of {found['rounds']} interleaved rounds of {found['seconds']:g} s; the bundled model, a 32 px PNG,",
        "embedded engine. CPU is that of all processes of the server, a request; memory, after the rounds, of each,",
        "and as `pss`, which counts a page that n processes share, of this server or not, as an nth in each.",
        "",
        "| workers | clients | requests/s | p50 ms | p99 ms | CPU ms/request | failed | rss MB | pss MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for workers, server in found["of"].items():
        for clients, figures in server["clients"].items():
            rss = " + ".join(f"{value:.0f}" for value in server["rss_mb"].values())
            lines.append(
                f"| {workers} | {clients} | {figures['rps']:.0f} | {figures['p50_ms']:.1f} | {figures['p99_ms']:.1f} "
                f"| {figures['cpu_ms']:.2f} | {figures['failed']:.0f} | {rss} | {server['pss_mb']:.0f} |"
            )
    lines += ["", "The first of several `rss` is the supervisor."]
    if "kills" in found:
        killed = found["kills"]
        seconds = [k["seconds"] for k in killed["kills"]]
        failed = [k["failed"] for k in killed["kills"]]
        lines += [
            "",
            f"{len(failed)} times SIGKILL to one of {killed['workers']} workers, {killed['callers']} callers waiting:",
            f"at most {max(failed)} requests failed each time, {sum(failed)} in all, {killed['answered']:,} answered.",
            f"All workers were up again in {statistics.median(seconds):.2f} s (median), at most {max(seconds):.2f} s.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
