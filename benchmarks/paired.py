"""`/predict` with a small image on two checkouts, in pairs: each measurement is followed by the same one of the other.

Figures are medians of the ratios after / before of each pair, with their quartiles. On a machine that others use, the
CPU time of a request says more than the requests a second.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .harness import report
from .harness.closed_loop import add_image, add_rounds, kept, lua, rotated, uploaded, wrk
from .harness.processes import Process, free_port

EXAMPLES = """examples:
  git worktree add --detach ../before COMMIT
  python -m benchmarks.paired --before ../before --rounds 20
"""


def main() -> int:
    parser = report.parser("paired", __doc__, EXAMPLES)
    add_image(parser)
    add_rounds(parser, [1, 8, 32])
    parser.add_argument("--before", type=Path, required=True, help="another checkout")
    parser.add_argument("--version", default="latest", help="of the model, where the newest are not the same [latest]")
    parser.add_argument("--after", type=Path, default=report.ROOT, help="[this one]")
    report.add_out(parser, "paired")
    options = parser.parse_args()
    if report.missing("wrk"):
        return 0
    folders = {"before": options.before.resolve(), "after": options.after.resolve()}
    samples: dict[str, dict[int, list[dict[str, float]]]] = {name: {c: [] for c in options.clients} for name in folders}
    facts = report.loaded_machine()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (script := scratch / "post.lua").write_bytes(lua(uploaded(options.image)))
        running: dict[str, tuple[int, Process]] = {}
        for name, folder in folders.items():
            port = free_port()
            command = [sys.executable, "-m", "server", "--port", str(port), "--admin-port", "none"]
            command += ["--version", options.version]
            process = stack.enter_context(Process(command, scratch / name, folder=folder))
            process.answering(f"http://127.0.0.1:{port}/v2/health/ready", 180)
            wrk(port, 2, 1.0, script)
            running[name] = port, process
        for turn in range(options.rounds):
            for clients in options.clients:
                for name in rotated(list(folders), turn):
                    port, process = running[name]
                    samples[name][clients].append(wrk(port, clients, options.seconds, script, [process.pid]))
    found = {
        "what": "POST /predict of one small image, two checkouts in pairs",
        "machine": facts,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "ratios": {str(c): ratios(samples["before"][c], samples["after"][c]) for c in options.clients},
        "samples": kept(samples),
    }
    text = markdown(found)
    report.publish(options.out, found, text)
    print(text)
    return 0


def ratios(before: list[dict[str, float]], after: list[dict[str, float]]) -> dict[str, list[float]]:
    """Quartiles of after / before, of requests a second and of CPU time a request."""
    pairs = list(zip(before, after, strict=True))
    return {
        name: statistics.quantiles([b[name] / a[name] for a, b in pairs], n=4, method="inclusive")
        for name in ("rps", "cpu_ms")
    }


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        "# /predict before and after",
        "",
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores shared with wrk, load "
        f"{found['machine']['load_before'][0]:.1f} at the start; {found['rounds']} pairs of {found['seconds']:g} s. "
        "Ratios after / before: the median, and the quartiles. Made by `python -m benchmarks.paired --before DIR`.",
        "",
        "| clients | CPU time a request | requests a second |",
        "|---|---|---|",
    ]
    for clients, row in found["ratios"].items():
        cells = [f"{row[name][1]:.3f} ({row[name][0]:.3f} to {row[name][2]:.3f})" for name in ("cpu_ms", "rps")]
        lines.append(f"| {clients} | {cells[0]} | {cells[1]} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
