"""What a reload costs requests: latencies of those that are due meanwhile, beside calm spans of the same length.

One process and two workers, of this checkout and, with `--before`, of another one in turns. The same model appears as a
new version again and again while an open loop asks at random times; latencies count from when a request was due. The
calm span of a reload is as long and ends where it begins. Parts are timed in this process, with nobody to disturb.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tqdm import tqdm

from awnet.command.arrivals import arrivals
from awnet.planning.asking import Asker, Sample, post
from server.core import contract
from server.core.engine import outputs_of
from server.core.memory import return_memory
from server.engines.onnx_cut import Cutter, property_of
from server.engines.onnx_scan import scan

from ..harness import report
from ..harness.closed_loop import Figures, add_image, add_model, form, lua, model_file, rotated, uploaded, wrk
from ..harness.load import quantile
from ..harness.reloading import Reloading, Span
from ..harness.report import ROOT

EXAMPLES = """examples:
  python -m benchmarks.speed.reload
  python -m benchmarks.speed.reload --processes 1 --rate 400 --rounds 2
  git worktree add --detach ../before COMMIT
  python -m benchmarks.speed.reload --before ../before
"""
SHARE = 0.7  # of the requests a second that 32 clients reach in a closed loop
LEAD_SECONDS, EVERY_SECONDS = 2.0, 4.0  # before the first reload of a round, and between two
QUANTILES = {"p50": 0.5, "p99": 0.99, "most": 1.0}
STAGES = re.compile(r"loading (\d+), warming (\d+), test (\d+)")
WORKERS = {1: "one process", 2: "two workers"}
REPEATS = 7  # of each part


def main(arguments: list[str] | None = None) -> int:
    parser = report.parser("speed.reload", __doc__, EXAMPLES)
    add_model(parser)
    add_image(parser)
    parser.add_argument("--before", type=Path, help="another checkout [none]")
    parser.add_argument("--processes", type=int, nargs="+", choices=tuple(WORKERS), default=[*WORKERS], help="[1 2]")
    parser.add_argument(
        "--rate", type=float, help="requests a second [70 %% of what 32 clients reach in a closed loop]"
    )
    parser.add_argument("--rounds", type=int, default=4, help="[4]")
    parser.add_argument("--reloads", type=int, default=3, help="in each round [3]")
    report.add_out(parser, "reload")
    options = parser.parse_args(arguments)
    if report.missing("wrk"):
        return 0
    found = measure(options)
    report.conclude(options.out, found, markdown(found))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; returns the report."""
    folders = {"before": options.before.resolve()} if options.before else {}
    folders["now"] = ROOT
    model, image = model_file(options.repository, options.model, options.version), uploaded(options.image)
    body, content_type = form(image)
    request = post("/predict", body, {"Content-Type": content_type})
    found: dict[str, Any] = {
        "what": "latencies while a model is reloaded",
        "command": command(options),
        "machine": report.loaded_machine(),
        "rounds": options.rounds,
        "reloads": options.reloads,
        "parts": parts(model.read_bytes()),
        "rates": {},
        "servers": {},
    }
    for n in options.processes:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            (script := Path(folder) / "post.lua").write_bytes(lua(image))
            servers = {
                name: stack.enter_context(Reloading(model, Path(folder), checkout, workers=n))
                for name, checkout in folders.items()
            }
            askers = {
                name: stack.enter_context(Asker([("127.0.0.1", server.port)], request))
                for name, server in servers.items()
            }
            for name, server in servers.items():
                server.wait_ready(180)
                askers[name].offered(arrivals("poisson", 200, 2))
            rate = options.rate or SHARE * wrk(servers["now"].port, 32, 3, script)["rps"]
            found["rates"][str(n)] = rate
            rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
            turns = [(turn, name) for turn in range(options.rounds) for name in rotated(list(servers), turn)]
            for turn, name in tqdm(turns, desc=f"reloads, {WORKERS[n]}"):
                rounds[name].append(one_round(servers[name], askers[name], rate, options.reloads, turn))
            found["servers"][str(n)] = {
                name: summed_up(rounds[name], STAGES.findall(server.text())[n:]) for name, server in servers.items()
            }
    return found


def command(options: argparse.Namespace) -> str:
    """How to measure this again."""
    given = [f"--rounds {options.rounds} --reloads {options.reloads}"]
    if options.processes != [*WORKERS]:
        given.append(f"--processes {' '.join(map(str, options.processes))}")
    if options.rate:
        given.append(f"--rate {options.rate:g}")
    return " ".join(["python -m benchmarks.speed.reload", *given, *(["--before DIR"] if options.before else [])])


def one_round(server: Reloading, asker: Asker, rate: float, reloads: int, seed: int) -> dict[str, Any]:
    """Latencies of some reloads and of the calm before each, seconds."""
    starts = [LEAD_SECONDS + EVERY_SECONDS * place for place in range(reloads)]
    with server.reloads(starts) as done:
        samples = asker.offered(arrivals("poisson", rate, starts[-1] + EVERY_SECONDS, seed))
        spans = done.result()
    calms, free = [], 0.0
    for span in spans:
        calms.append(Span(max(free, 2 * span.begun - span.ended), span.begun))
        free = span.ended
    return {
        "seconds": [span.ended - span.begun for span in spans],
        "calm": latencies(samples, calms),
        "reload": latencies(samples, spans),
    }


def latencies(samples: Sequence[Sample], spans: Sequence[Span]) -> list[float]:
    """Of the requests that were due in these, seconds; infinite without a 200."""
    return [one.seconds if one.status == 200 else math.inf for span in spans for one in span.of(samples)]


def summed_up(rounds: Sequence[dict[str, Any]], stages: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """Quantiles over all rounds, ms, and medians of `stages`, which logs of older servers have not."""
    took = [1000 * seconds for one in rounds for seconds in one["seconds"]]
    found: dict[str, Any] = {
        "reload_ms": statistics.median(took),
        "longest_reload_ms": max(took),
        "stages_ms": [statistics.median(map(int, column)) for column in zip(*stages, strict=True)],
    }
    for what in ("calm", "reload"):
        seconds = [value for one in rounds for value in one[what]]
        found[what] = {name: 1000 * quantile(seconds, share) for name, share in QUANTILES.items()}
        found[what] |= {"requests": len(seconds), "failed": sum(map(math.isinf, seconds))}
    return found


def parts(data: bytes) -> dict[str, Figures]:
    """What opening a version consists of: processor time, and for how long another thread got no interpreter, ms."""
    text = property_of(data, contract.METADATA_KEY)
    assert text is not None, "a published model has a contract"
    promise = contract.parse(text)
    cutter, images = Cutter(data), promise.golden.image
    files = [cutter.cut(outputs_of(mode)) for mode in promise.modes]
    sessions: list[ort.InferenceSession] = []

    def load() -> None:
        sessions.extend(_session(file) for file in files)

    def run(sizes: Sequence[int]) -> None:
        for mode, session in zip(promise.modes, sessions, strict=False):
            for size in sizes:
                session.run(outputs_of(mode), {"image": images[np.arange(size) % len(images)]})

    steps: dict[str, Callable[[], object]] = {
        "SHA-256": lambda: hashlib.sha256(data).digest(),
        "scan": lambda: scan(data),
        "contract": lambda: contract.parse(text),
        "cut, all modes": lambda: [cut.cut(outputs_of(mode)) for cut in [Cutter(data)] for mode in promise.modes],
        "session, all modes": load,
        "each batch size once, all modes": lambda: run((1, 8, 4, 2, 1)),
        "golden images, all modes": lambda: run((len(images), *[1] * len(images))),
        "sessions freed": sessions.clear,
        "memory given back": return_memory,
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(REPEATS):
        for name, step in steps.items():
            taken[name].append(_watched(step))
    return {
        name: {"cpu_ms": statistics.median(cpu for cpu, _ in rows), "held_ms": statistics.median(h for _, h in rows)}
        for name, rows in taken.items()
    }


def _session(data: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _watched(step: Callable[[], object]) -> tuple[float, float]:
    """Processor time of `step`, and the longest pause of a thread that asks for the interpreter all the time, ms."""
    over, pauses = threading.Event(), [0.0]

    def tick() -> None:
        last = time.perf_counter()
        while not over.is_set():
            time.sleep(0.0001)
            now = time.perf_counter()
            pauses.append(now - last)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    begun = time.thread_time()
    step()
    cpu = time.thread_time() - begun
    over.set()
    thread.join()
    return 1000 * cpu, 1000 * max(pauses)


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    machine, names = found["machine"], list(next(iter(found["servers"].values())))
    lines = [
        "# A reload beside requests",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before'][0]:.1f} before; {found['rounds']} "
        f"rounds of {found['reloads']} reloads each{', checkouts in turns' if len(names) > 1 else ''}; the client has "
        "the same cores. Latencies of requests that were due during a reload, and of those due as long before it, over "
        f"all reloads. Made by `{found['command']}`.",
    ]
    for n, servers in found["servers"].items():
        lines += [
            "",
            f"## {WORKERS[int(n)].capitalize()}, {found['rates'][n]:.0f} requests a second",
            "",
            "| | | requests | p50 ms | p99 ms | most ms | failed | reload ms, median, most | loading, warming, test |",
            "|---|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for name, row in servers.items():
            took = f"{row['reload_ms']:.0f}, {row['longest_reload_ms']:.0f}"
            stages = ", ".join(f"{ms:.0f}" for ms in row["stages_ms"])
            for what, more in (("calm", " | "), ("reload", f"{took} | {stages}")):
                some = row[what]
                figures = " | ".join(f"{some[quantile]:.1f}" for quantile in QUANTILES)
                lines.append(f"| {name} | {what} | {some['requests']} | {figures} | {some['failed']} | {more} |")
    lines += [
        "",
        "## Parts",
        "",
        "Processor time of one thread, and the longest time for which another thread waited for the interpreter; "
        f"medians of {REPEATS}, in a process that does nothing else.",
        "",
        "| part | ms | interpreter held, ms |",
        "|---|--:|--:|",
        *(f"| {name} | {row['cpu_ms']:.1f} | {row['held_ms']:.1f} |" for name, row in found["parts"].items()),
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
