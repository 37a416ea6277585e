"""Draws the query guard's results: queries until each attack is found, and beside it what honest traffic comes to."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..harness.report import RESULTS, ROOT, parser

EXAMPLES = """examples:
  python -m benchmarks.guard.draw_query_guard    the committed results again
"""
OUT = ROOT / "docs/images/query-guard.png"
FOUND, MISSED, HONEST, FLAGGED = "#b3261e", "#8a8f98", "#1f6f8b", "#d98200"
LEAST = 3  # where an attack or a client has hardly begun
STILL = "a camera that does not move, 25 fps"


def main() -> int:
    command_line = parser("guard.draw_query_guard", __doc__, EXAMPLES)
    command_line.add_argument(
        "--report", type=Path, default=RESULTS / "query_guard.json", help="of benchmarks.guard.query_guard"
    )
    command_line.add_argument("--out", type=Path, default=OUT, help="[docs/images/query-guard.png]")
    options = command_line.parse_args()
    draw(json.loads(options.report.read_text("utf-8")), options.out)
    return 0


def draw(found: dict[str, Any], out: Path) -> None:
    """Left a row for each attack, with a dot for each attacked image; right a bar for each kind of honest traffic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    attacks = list(reversed(found["attacks"].values()))
    traffic = list(reversed(grouped(found["honest"]["test"])))
    figure = Figure(figsize=(13, 1.6 + 0.3 * max(len(attacks), len(traffic))), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True)
    for place, row in enumerate(attacks):
        pairs = list(zip(row["asked"], row["found_at"], strict=True))
        at = [query for _, query in pairs if query]
        ended = [asked for asked, query in pairs if not query and asked > found["limit"]]
        left.plot([max(LEAST, x) for x in at], [place] * len(at), "o", ms=5, alpha=0.5, color=FOUND, mec="none")
        left.plot([max(LEAST, x) for x in ended], [place] * len(ended), "x", ms=6, color=MISSED)
        left.text(2300, place, f"{row['found']} of {row['long_enough']}", va="center", fontsize=8)
    left.set_yticks(range(len(attacks)), [f"{row['attack']}, {row['variant']} ({row['guard']})" for row in attacks])
    left.set_title("Attacks: query with which each was found", loc="left", fontsize=10)
    left.plot([], [], "o", color=FOUND, label="found")
    left.plot([], [], "x", color=MISSED, label="ended unfound, after so many")
    left.legend(loc="upper left", bbox_to_anchor=(0, -0.1), ncols=2, fontsize=8, frameon=False)
    left.set_xlabel("queries")
    for place, (_, most, share) in enumerate(traffic):
        right.barh(place, most, 0.6, left=0, color=FLAGGED if share else HONEST)
        right.text(2300, place, f"{share:.0%} flagged" if share else "none flagged", va="center", fontsize=8)
    right.set_yticks(range(len(traffic)), [about for about, _, _ in traffic])
    right.set_title("Honest clients: most images that counted as alike", loc="left", fontsize=10)
    right.set_xlabel("images")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlim(LEAST - 2, 6000)
        axes.axvline(found["limit"], color="black", lw=1, ls="--")
        axes.tick_params(axis="y", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


def grouped(rows: list[dict[str, Any]]) -> list[tuple[str, int, float]]:
    """Kinds of traffic with the most images alike and the share that was flagged; videos that move are one."""
    bars, moving = [], []
    for row in rows:
        if row["about"].startswith("video"):
            moving.append(row)
        else:
            bars.append(
                (row["about"].replace(STILL, "still camera"), row["most_similar"], row["flagged"] / row["images"])
            )
    if moving:
        most, flagged = max(row["most_similar"] for row in moving), sum(row["flagged"] for row in moving)
        bars.append((f"{len(moving)} videos that move", most, flagged / sum(row["images"] for row in moving)))
    return bars


if __name__ == "__main__":
    sys.exit(main())
