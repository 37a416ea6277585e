"""Draws what `deployment.simulation` found: p99 against load beside measured points, and a burst by autoscaler."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, NullFormatter

from ..harness import report

EXAMPLES = """examples:
  python -m benchmarks.deployment.draw_simulation    the committed results again
"""
COLOURS = ("#1b6e3c", "#1f5fa8", "#b3261e", "#c77700")


def main() -> int:
    report.parser("deployment.draw_simulation", __doc__, EXAMPLES).parse_args()
    found = json.loads((report.RESULTS / "simulation.json").read_text("utf-8"))
    draw(found, report.ROOT / "docs/images")
    return 0


def draw(found: dict[str, Any], folder: Path) -> None:
    """simulation-load.svg and simulation-burst.svg in `folder`."""
    before = plt.get_backend()
    plt.switch_backend("svg")  # whatever else this process has drawn with: the same numbers give the same file
    try:
        with plt.rc_context():
            plt.rcdefaults()
            plt.rcParams.update(
                {"svg.hashsalt": "awnet", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
            )
            _load(found, folder / "simulation-load.svg")
            _burst(found, folder / "simulation-burst.svg")
    finally:
        plt.switch_backend(before)


def _load(found: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    for name, colour in zip(dict.fromkeys(row["layout"] for row in found["curves"]), COLOURS, strict=False):
        curve = [row for row in found["curves"] if row["layout"] == name]
        points = [row for row in found["rows"] if row["layout"] == name]
        axes.plot([100 * r["share"] for r in curve], [r["p99_ms"] for r in curve], color=colour, label=name)
        axes.plot(
            [100 * r["share"] for r in points],
            [r["measured"]["p99_ms"] for r in points],
            "o",
            color=colour,
        )
    axes.set(xlabel="load, % of what the cores can do", ylabel="p99, ms", yscale="log")
    axes.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100, 200, 500]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    title = "lines: predicted, points: measured"
    axes.legend(frameon=False, fontsize=8, title=title, title_fontsize=8, loc="lower right")
    _save(figure, path)


def _burst(found: dict[str, Any], path: Path) -> None:
    figure, (pods, p99) = plt.subplots(2, 1, figsize=(6.4, 4.6), sharex=True)
    for row, colour in zip(found["burst"], COLOURS, strict=False):
        end = len(row["p99_ms"])
        changes = dict(row["pods"])  # the last of those at one time
        times, counts = list(changes), list(changes.values())
        pods.step([*times, end], [*counts, counts[-1]], where="post", color=colour, label=row["autoscaler"])
        p99.plot(range(end), [float("nan") if v is None else v for v in row["p99_ms"]], color=colour)
    pods.set(ylabel="pods that take requests", xlim=(0, end))
    pods.legend(frameon=False, fontsize=8)
    p99.set(xlabel="seconds; the burst is from 30 to 90", ylabel="p99 of a second, ms", yscale="log")
    p99.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
