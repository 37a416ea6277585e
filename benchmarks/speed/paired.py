"""`/predict` with a small image on two checkouts, in pairs: each measurement is followed by the same one of the other.

Figures are medians of the ratios after / before of each pair, with their quartiles. On a machine that others use, the
CPU time of a request says more than the requests a second.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..harness import report
from ..harness.closed_loop import add_image, add_rounds, lua, ratios, raw_samples, rotated, uploaded, wrk
from ..harness.processes import Server

EXAMPLES = """examples:
  git worktree add --detach ../before COMMIT
  python -m benchmarks.speed.paired --before ../before --rounds 20
"""


def main() -> int:
    parser = report.parser("speed.paired", __doc__, EXAMPLES)
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
        servers = {}
        for name, folder in folders.items():
            servers[name] = server = stack.enter_context(Server(scratch, folder, version=options.version))
            server.wait_ready(180)
            wrk(server.port, 2, 1.0, script)
        for turn in range(options.rounds):
            for clients in options.clients:
                for name in rotated(list(folders), turn):
                    server = servers[name]
                    samples[name][clients].append(wrk(server.port, clients, options.seconds, script, [server.pid]))
    found = {
        "what": "POST /predict of one small image, two checkouts in pairs",
        "machine": facts,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "ratios": {str(c): ratios(samples["before"][c], samples["after"][c]) for c in options.clients},
        "samples": raw_samples(samples),
    }
    report.conclude(options.out, found, markdown(found))
    return 0


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        "# /predict before and after",
        "",
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores shared with wrk, load "
        f"{found['machine']['load_before'][0]:.1f} at the start; {found['rounds']} pairs of {found['seconds']:g} s. "
        "Ratios after / before: the median, and the quartiles. Made by `python -m benchmarks.speed.paired "
        "--before DIR`.",
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
