"""What a start takes, and what a server then holds: seconds until ready, CPU time until then, memory.

One process and two workers, of this checkout and, with `--before`, of another one in turns. CPU time hangs less on what
else runs than seconds do. RSS counts a page that several processes share in each of them; PSS counts it once, divided
among them, servers of others on the machine included. Both are sums over all processes of a server.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..harness import report
from ..harness.closed_loop import Figures, lua, medians, rotated, uploaded, wrk
from ..harness.processes import Server, cpu_seconds, family, memory_mb
from ..harness.report import ROOT

EXAMPLES = """examples:
  python -m benchmarks.speed.start
  git worktree add --detach ../before COMMIT
  python -m benchmarks.speed.start --before ../before --rounds 9
"""
ROWS = {
    "seconds until ready": ("ready", 2),
    "CPU time until ready, s": ("cpu", 2),
    "RSS after load, MB": ("rss", 0),
    "PSS after load, MB": ("pss", 0),
}
CLIENTS = (1, 8, 32)  # for a second each
SETTLING_SECONDS = 4.0  # the second worker starts once the first is ready
WORKERS = {"one process": 1, "two workers": 2}


def main() -> int:
    parser = report.parser("speed.start", __doc__, EXAMPLES)
    parser.add_argument("--before", type=Path, help="another checkout [none]")
    parser.add_argument("--rounds", type=int, default=5, help="[5]")
    report.add_out(parser, "start")
    options = parser.parse_args()
    if report.missing("wrk"):
        return 0
    found = measure(options)
    report.conclude(options.out, found, markdown(found))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; returns the report."""
    folders = {"before": options.before.resolve()} if options.before else {}
    folders["now"] = ROOT
    facts = report.loaded_machine()
    samples: dict[str, dict[str, list[Figures]]] = {which: {name: [] for name in folders} for which in WORKERS}
    with tempfile.TemporaryDirectory() as scratch:
        (script := Path(scratch) / "post.lua").write_bytes(lua(uploaded(None)))
        for turn in range(options.rounds):
            for which, workers in WORKERS.items():
                for name in rotated(list(folders), turn):
                    samples[which][name].append(start(folders[name], workers, script, Path(scratch)))
    return {
        "what": "the start of a server and its memory",
        "machine": facts,
        "rounds": options.rounds,
        "servers": {which: {name: medians(rounds) for name, rounds in by.items()} for which, by in samples.items()},
        "samples": samples,
    }


def start(checkout: Path, workers: int, script: Path, scratch: Path) -> Figures:
    """One server from its start to its end."""
    begun = time.perf_counter()
    with Server(scratch, checkout, workers=workers) as server:
        server.wait_ready(180)
        figures = {"ready": time.perf_counter() - begun, "cpu": sum(map(cpu_seconds, family(server.pid)))}
        time.sleep(SETTLING_SECONDS)
        for clients in CLIENTS:
            wrk(server.port, clients, 1, script)
        for kind in ("Rss", "Pss"):
            figures[kind.lower()] = sum(memory_mb(pid, kind) for pid in family(server.pid))
        return figures


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    names = list(next(iter(found["servers"].values())))
    lines = [
        "# The start of a server, and its memory",
        "",
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores, load "
        f"{found['machine']['load_before'][0]:.1f} before; medians of {found['rounds']} rounds, checkouts in turns; "
        "the bundled model with the version before it. RSS and PSS are sums over a server's processes. Made by "
        "`python -m benchmarks.speed.start" + (" --before DIR`." if len(names) > 1 else "`."),
    ]
    for which, servers in found["servers"].items():
        lines += ["", f"## {which.capitalize()}", "", f"| | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
        for row, (figure, digits) in ROWS.items():
            lines.append(f"| {row} | {' | '.join(f'{servers[name][figure]:.{digits}f}' for name in names)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
