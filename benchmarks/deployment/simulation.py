"""The simulation behind `awnet plan`: measured, held to real processes, and asked about fleets and bursts.

1. What a request costs, of a server on a core of its own and of one that shares two with the client, while closed
   loops of more and more clients ask it, and lone requests after longer and longer pauses (`awnet.planning.measuring`).
   `--times` keeps the former as the package's own.
2. An open loop of independent clients against one process on a core of its own, one on two cores, and two on two
   cores, at several shares of what they can do. Where client and servers share two cores, the simulation has the
   client's CPU time, as measured in that very run, as one more thread. Predictions know the rate and not the arrivals.
   Rounds are interleaved, and the samples of all rounds put together.
3. 1 to 1,000 replicas under each balancer, at 70 % of what they can do.
4. A burst on the chart's autoscalers, on the queue and on CPU.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from awnet.command.arrivals import arrivals
from awnet.planning.autoscaling import Autoscaling
from awnet.planning.balancers import BALANCERS
from awnet.planning.fleet import Outcome, simulate
from awnet.planning.replica import Shape
from awnet.planning.sizing import quantile
from awnet.planning.times import ServiceTimes, parsed

from ..harness import report
from .draw_simulation import draw
from .predicted import LAYOUTS, capacity, measure, predict, quantiles, simulated

EXAMPLES = """examples:
  python -m benchmarks.deployment.simulation --times awnet/planning/times.json    all of it, quiet, five minutes
  python -m benchmarks.deployment.simulation --seconds 2 --out /tmp/simulation    a quick look
"""
GOAL = 0.15  # predicted against measured
SIZES, FLEET_SHARE = (1, 10, 100, 1000), 0.7
MOST_TO_LOOK_AT = 100  # replicas among which `least` is simulated
CONTAINER_SECONDS = 2.0  # assumed: until a pod is scheduled and its container has started
CALM, LOUD, BEGIN, END, WHOLE = 0.3, 4.0, 30.0, 90.0, 105.0  # shares of what two pods can do; seconds
MEASURED = {"times": "on a core of its own", "times_shared": "that shares two cores with the client"}
STAGES = ("queue_ms", "inference_ms", "rest_ms", "cpu_ms", "batch")
FAST = {"grow": 3.0, "up": 15.0}
SCALERS: dict[str, dict[str, Any]] = {
    "queue, as the chart": {"on": "queue"},
    "CPU, as the chart": {"on": "cpu"},
    "queue, four times as many every 15 s": {"on": "queue", **FAST},
    "CPU, four times as many every 15 s": {"on": "cpu", **FAST},
}


def main() -> int:
    parser = report.parser("deployment.simulation", __doc__, EXAMPLES)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load in each round [6]")
    parser.add_argument("--rounds", type=int, default=2, help="[2]")
    parser.add_argument("--measure-seconds", type=float, default=30.0, help="for what a request costs [30]")
    parser.add_argument("--times", type=Path, help="keep that there")
    parser.add_argument("--again", action="store_true", help="measure nothing: what OUT.json has was measured")
    report.add_out(parser, "simulation")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if options.again:
        found = json.loads(options.out.with_suffix(".json").read_text("utf-8"))
    elif len(cores) < 2:
        print("skipped: a server and its client need a core each", file=sys.stderr)
        return 0
    else:
        found = {"machine": report.loaded_machine(), "seconds": options.seconds, **measure(options, cores[:2])}
        found["machine"]["load_after"] = list(os.getloadavg())
        report.write(options.out.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    times = parsed(found["times"])
    if options.times:
        report.write(options.times, json.dumps(found["times"], indent=1) + "\n")
    found["fleets"] = fleets(times)
    predict(found["rows"], found)
    found["curves"] = curves(found)
    found["burst"] = burst(times)
    report.conclude(options.out, found, markdown(found))
    images = report.ROOT / "docs/images" if options.out == report.RESULTS / "simulation" else options.out.parent
    draw(found, images)
    return 0


def curves(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Predicted p99 at more loads than were measured, of each layout."""
    curves = []
    for name, layout in LAYOUTS.items():
        client = statistics.mean(row["client_cpu_ms"] for row in found["rows"] if row["layout"] == name) / 1000
        for percent in range(10, 100, 10):
            rate = percent / 100 * capacity(parsed(found[layout.times]), layout)
            outcome = simulated(layout, found, rate, client, 6000 / rate, 7)
            curves.append({"layout": name, "share": percent / 100, **quantiles(outcome.latencies(since=600 / rate))})
    return curves


def fleets(times: ServiceTimes) -> list[dict[str, Any]]:
    """1 to 1,000 replicas of one core, by balancer."""
    found = []
    for size in SIZES:
        for balance in BALANCERS:
            if balance == "least" and size > MOST_TO_LOOK_AT:
                continue
            rate = FLEET_SHARE * size * times.capacity(1, 8)
            seconds = max(8000, 60 * size) / rate
            outcome = simulate(arrivals("poisson", rate, seconds, 7), times, Shape(1), size, balance)
            found.append(
                {
                    "replicas": size,
                    "balancer": balance,
                    "rate": rate,
                    "requests": len(outcome.requests),
                    **quantiles(outcome.latencies(since=seconds / 10)),
                    "batch": outcome.images / outcome.batches,
                }
            )
    return found


def burst(times: ServiceTimes) -> list[dict[str, Any]]:
    """Pods of one core behind a balancer that looks, by autoscaler."""
    most = 2 * times.capacity(1, 8)
    start = CONTAINER_SECONDS + times.ready_seconds

    def load() -> Iterator[float]:
        for begin, end, share in ((0.0, BEGIN, CALM), (BEGIN, END, LOUD), (END, WHOLE, CALM)):
            yield from (begin + due for due in arrivals("poisson", share * most, end - begin, int(begin)))

    found = []
    for name, chosen in SCALERS.items():
        scaling = Autoscaling(minimum=2, maximum=32, start=start, **chosen)
        outcome = simulate(load(), times, Shape(1), scaling.minimum, control=scaling.control)
        found.append({"autoscaler": name, **of_burst(outcome)})
    return found


def of_burst(outcome: Outcome) -> dict[str, Any]:
    """What came of a burst, and how it went by the second."""
    seconds: list[list[float]] = [[] for _ in range(int(WHOLE))]
    refused = [0] * int(WHOLE)
    for request in outcome.requests:
        at = min(int(request.due), int(WHOLE) - 1)
        if request.refused:
            refused[at] += 1
        elif request.ended is not None:
            seconds[at].append(request.ended - request.due)
    p99 = [1000 * quantile(sorted(each), 0.99) if each else None for each in seconds]
    bad = [at for at in range(int(BEGIN), int(END)) if refused[at] or (p99[at] or 0.0) > 50]
    return {
        "refused_share": outcome.refused / len(outcome.requests),
        "seconds_over_50_ms": len(bad),
        "last_bad_second": bad[-1] + 1 - BEGIN if bad else 0,
        "most_pods": max(count for _, count in outcome.sizes),
        "pod_seconds": outcome.replica_seconds,
        "pods": outcome.sizes,
        "p99_ms": p99,
    }


def costs(times: ServiceTimes, where: str) -> list[str]:
    """What a request costs, and how much more after a pause."""
    executions = ", ".join(f"{1000 * times.execution(size):.2f}" for size in (1, 2, 4, 8))
    lines = [
        f"Server {where}, CPU time of a request, ms: read {1000 * times.read:.3f}, decode {1000 * times.decode:.3f}, "
        f"answer {1000 * times.answer:.3f}, {1000 * times.deliver:.3f} more a batch; executions of 1, 2, 4, 8 images: "
        f"{executions}, {1000 * times.python:.2f} of it with the interpreter's lock. Besides, {1000 * times.fixed:.3f} "
        "ms without a core.",
        "",
    ]
    if times.cold:
        lines += [
            "| lone, after a pause of ms | more of the event loop, ms | of the engine | without a core |",
            "|--:|--:|--:|--:|",
            *("| " + " | ".join(f"{1000 * value:.2f}" for value in cold) + " |" for cold in times.cold),
            "",
        ]
    return lines


def markdown(found: dict[str, Any]) -> str:
    """The report for people."""
    about, times, rows = found["machine"], found["times"], found["rows"]
    load = [f"{about[when][0]:.1f}" for when in ("load_before", "load_after")]
    inside = {key: sum(abs(r["off"][key]) <= GOAL for r in rows) for key in ("rps", "p50_ms", "p99_ms")}
    lines = [
        "# The simulation behind `awnet plan`, beside real processes",
        "",
        f"`python -m benchmarks.deployment.simulation`: {about['cpu']}, two cores, load {load[0]} before and {load[1]} "
        "after.",
        "",
        *(line for key, where in MEASURED.items() for line in costs(parsed(found[key]), where)),
        f"{times['memory_mb']:.0f} MB (PSS), ready after {times['ready_seconds']:.1f} s.",
        "",
        f"**Within {GOAL:.0%}**: requests/s {inside['rps']}, p50 {inside['p50_ms']}, p99 {inside['p99_ms']} of "
        f"{len(rows)} loads. `others`: cores that other work of the machine had meanwhile.",
        "",
        "| layout | load | requests/s: measured, predicted | p50 ms | off | p99 ms | off | failed | others |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        real, said, off = r["measured"], r["predicted"], r["off"]
        pair = {key: f"{real[key]:.2f}, {said[key]:.2f} | {off[key]:+.0%}" for key in ("p50_ms", "p99_ms")}
        lines.append(
            f"| {r['layout']} | {r['share']:.0%} | {real['rps']:.0f}, {said['rps']:.0f} | {pair['p50_ms']} | "
            f"{pair['p99_ms']} | {r['failed']} | {r['others_cores']:.2f} |"
        )
    lines += [
        "",
        "The same by stage, as the server times it (queue, inference), and the rest; means, measured and predicted.",
        "",
        "| layout | load | queue, ms | inference, ms | rest, ms | CPU of the server, ms a request | images a batch |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        real, said = r["measured"], r["predicted"]
        stages = [f"{real[key]:.2f}, {said[key]:.2f}" for key in STAGES]
        lines.append(f"| {r['layout']} | {r['share']:.0%} | {' | '.join(stages)} |")
    lines += [
        "",
        "![p99 against load](../../docs/images/simulation-load.svg)",
        "",
        f"## 1 to 1,000 replicas of one core at {FLEET_SHARE:.0%}",
        "",
        "| replicas | requests/s | " + " | ".join(f"{balance}: p50, p99 ms" for balance in BALANCERS) + " |",
        "|--:|--:|" + "--:|" * len(BALANCERS),
    ]
    for size in SIZES:
        of = {f["balancer"]: f for f in found["fleets"] if f["replicas"] == size}
        cells = [f"{of[b]['p50_ms']:.1f}, {of[b]['p99_ms']:.1f}" if b in of else "-" for b in BALANCERS]
        lines.append(f"| {size:,} | {next(iter(of.values()))['rate']:,.0f} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"## A burst of {END - BEGIN:.0f} s, {LOUD / CALM:.0f} times the load before",
        "",
        f"Two pods of one core at {CALM:.0%}; the burst is {LOUD:g} times what both can do. A pod takes requests "
        f"{CONTAINER_SECONDS:g} s (assumed) and the time until ready after it was asked for.",
        "",
        "| autoscaler | refused | seconds refused or over 50 ms | the last of them | most pods | pod seconds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for b in found["burst"]:
        lines.append(
            f"| {b['autoscaler']} | {b['refused_share']:.1%} | {b['seconds_over_50_ms']} | "
            f"{b['last_bad_second']:.0f} s in | {b['most_pods']} | {b['pod_seconds']:.0f} |"
        )
    lines += ["", "![The burst](../../docs/images/simulation-burst.svg)", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
