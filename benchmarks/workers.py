"""What several workers cost and give: memory, CPU time a request and throughput of `python -m server --workers N`.

The servers run side by side and are asked in turn, in rounds whose order rotates; figures are medians over rounds. wrk
is the client and shares the cores. Memory is told twice: `rss` counts shared pages in each process, `pss` once.

Afterwards a server with the most workers is run alone, and under callers who wait for each answer its workers are
killed (SIGKILL) one after the other: how many requests failed, and after how long all workers were up again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.server import ROOT, cpu_seconds, free_port, lua, machine, noise_png, running, wait_until_up, write, wrk
from benchmarks.server import command as served

EXAMPLES = """examples:
  python -m benchmarks.workers                           one and two workers, 8 clients, about a minute
  python -m benchmarks.workers --workers 1 2 4 --clients 1 8 32
  python -m benchmarks.workers --kills 50                and kill fifty times instead of ten
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workers",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository", help="[model_repository]")
    parser.add_argument("--model", default="awnet", help="[awnet]")
    parser.add_argument("--version", default="latest", help="[latest]")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="[1 2]")
    parser.add_argument("--clients", type=int, nargs="+", default=[8], help="[8]")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement [4]")
    parser.add_argument("--rounds", type=int, default=5, help="[5]")
    parser.add_argument("--kills", type=int, default=10, help="of workers, 0 for none [10]")
    parser.add_argument("--callers", type=int, default=4, help="who wait for answers meanwhile [4]")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/workers", help="without suffix")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("skipped: wrk is not installed (apt-get install wrk)", file=sys.stderr)
        return 0
    report = measure(options)
    if options.kills and max(options.workers) > 1:
        report["kills"] = kill(options)
    write(options.out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    text = markdown(report)
    write(options.out.with_suffix(".md"), text)
    print(text)
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; returns the report."""
    report: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "seconds": options.seconds, "of": {}}
    samples: dict[tuple[int, int], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        script = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "post.lua"
        script.write_bytes(lua(noise_png()))
        servers: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}
        for workers in options.workers:
            port = free_port()
            command = [*served("server", port, options), "--workers", str(workers), "--log-level", "warning"]
            servers[workers] = (port, stack.enter_context(running(command)))
        for workers, (port, process) in servers.items():
            wait_until_up(port, process)
            while workers > 1 and f"awnet_workers_up {workers}.0" not in exposition(port):
                pass
            wrk(port, max(options.clients), 1, script)  # warm
        turns = [(workers, clients) for clients in options.clients for workers in options.workers]
        for turn in range(options.rounds):
            for workers, clients in turns[turn % len(turns) :] + turns[: turn % len(turns)]:
                port, process = servers[workers]
                family = [process.pid, *children(process.pid)]
                before = sum(map(cpu_seconds, family))
                told = wrk(port, clients, options.seconds, script)
                spent = sum(map(cpu_seconds, family)) - before
                told["cpu_ms"] = 1000 * spent / (told["rps"] * options.seconds)
                samples.setdefault((workers, clients), []).append(told)
        for workers, (_, process) in servers.items():
            family = [process.pid, *children(process.pid)]
            report["of"][workers] = {
                "rss_mb": {pid: memory(pid, "Rss") for pid in family},
                "pss_mb": sum(memory(pid, "Pss") for pid in family),
                "clients": {
                    clients: {
                        name: statistics.median(sample[name] for sample in samples[workers, clients])
                        for name in ("rps", "p50_ms", "p99_ms", "cpu_ms", "failed")
                    }
                    for clients in options.clients
                },
            }
    report["machine"]["load_after"] = list(os.getloadavg())
    return report


def kill(options: argparse.Namespace) -> dict[str, Any]:
    """Workers killed in turn: {workers, callers, answered, kills: [{failed, seconds}]}."""
    workers, port, done = max(options.workers), free_port(), threading.Event()
    picture = noise_png()
    counts = {"answered": 0, "failed": 0}
    lock = threading.Lock()

    def call() -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/predict", data=picture, headers={"content-type": "image/png"}
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
        while (f"awnet_workers_up {workers}.0" in exposition(port)) != up and time.monotonic() < deadline:
            time.sleep(0.02)

    found: dict[str, Any] = {"workers": workers, "callers": options.callers, "kills": []}
    command = [*served("server", port, options), "--workers", str(workers), "--log-level", "error"]
    with running(command) as process:
        wait_until_up(port, process)
        until(True, 60)
        threads = [threading.Thread(target=call) for _ in range(options.callers)]
        for thread in threads:
            thread.start()
        try:
            for i in range(options.kills):
                before, started = counts["failed"], time.monotonic()
                os.kill(children(process.pid)[i % workers], signal.SIGKILL)
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


def exposition(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return str(answer.read(), "utf-8")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory(pid: int, kind: str) -> float:
    """Rss or Pss of a process, MB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"the kernel tells no {kind}")


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    about = report["machine"]
    load = [f"{about[when][0]:.1f}" for when in ("load_before", "load_after")]
    lines = [
        "# One worker and several",
        "",
        f"`python -m benchmarks.workers`: {about['cpu']}, {about['cores']} core(s) for servers and client together.",
        f"Load average {load[0]} before and {load[1]} after; the rest of it was other work there.",
        f"Medians of {report['rounds']} interleaved rounds of {report['seconds']:g} s; the bundled model, a 32 px PNG,",
        "embedded engine. CPU is that of all processes of the server, a request; memory, after the rounds, of each,",
        "and as `pss`, which counts a page that n processes share, of this server or not, as an nth in each.",
        "",
        "| workers | clients | requests/s | p50 ms | p99 ms | CPU ms/request | failed | rss MB | pss MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for workers, found in report["of"].items():
        for clients, figures in found["clients"].items():
            rss = " + ".join(f"{value:.0f}" for value in found["rss_mb"].values())
            lines.append(
                f"| {workers} | {clients} | {figures['rps']:.0f} | {figures['p50_ms']:.1f} | {figures['p99_ms']:.1f} "
                f"| {figures['cpu_ms']:.2f} | {figures['failed']:.0f} | {rss} | {found['pss_mb']:.0f} |"
            )
    lines += ["", "The first of several `rss` is the supervisor."]
    if "kills" in report:
        killed = report["kills"]
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
