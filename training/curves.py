"""Draws training curves: losses and validation figures of one or several stages, one after the other.

    python -m training.curves runs/my-run/report.json
    python -m training.curves training/reports/small-{0-trunk,a-detector,b-joint}.json --out curves

Reads reports of training.train and writes OUT.png and OUT.svg. The horizontal axis is training time, stages in the
order in which they are named; a figure that a stage does not have leaves a gap.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .core import drawing

# The names in a report, with what they are called.
LOSSES = {
    "nat": "natural images",
    "adv": "adversarial images",
    "type": "detector",
    "signals": "signals",
    "mixture": "bounded mixture",
}
ACCURACIES = {
    "validation_clean": "clean",
    "validation_pgd": "PGD",
    "validation_worst_case": "worst case",
    "validation_w_robust": "(clean + under attack) / 2",
}
AUROC = {"validation_auroc": "detector, AUROC"}
# Title, unit of the axis, lines.
PANELS = (
    ("Losses", "mean over the epoch", LOSSES),
    ("Accuracy", "% of validation images", ACCURACIES),
    ("Detection", "AUROC, validation images", AUROC),
)

Stage = tuple[str, list[dict[str, Any]]]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m training.curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("reports", nargs="+", type=Path, metavar="REPORT", help="of training.train: report.json of a run")
    add("--out", type=Path, default=Path("curves"), metavar="STEM", help="OUT.png and OUT.svg (default: curves)")
    args = parser.parse_args(argv)
    try:
        draw([stage(path) for path in args.reports], args.out)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(args.out.with_suffix(".png"))
    return 0


def stage(path: Path) -> Stage:
    """Name and epochs of a report. Raises ValueError where it is none, OSError."""
    try:
        document = json.loads(path.read_text("utf-8"))
        name, epochs = str(document["name"]), [dict(epoch) for epoch in document["epochs"]]
        if not epochs or not all(epoch["train_seconds"] > 0 for epoch in epochs):
            raise ValueError("it has no epoch")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no report of training.train ({error})") from error
    return name, epochs


def ends(stages: Sequence[Stage]) -> list[list[float]]:
    """When each epoch ended, minutes of training since the first stage began, for each stage."""
    found, now = [], 0.0
    for _, epochs in stages:
        found.append([now := now + epoch["train_seconds"] / 60 for epoch in epochs])
    return found


def draw(stages: Sequence[Stage], out: Path) -> None:
    """The panels that have something in them, below one another, as OUT.png and OUT.svg. Raises ValueError, OSError."""
    times = ends(stages)
    panels = [(title, unit, lines) for title, unit, names in PANELS if (lines := _lines(stages, times, names))]
    if not panels:
        raise ValueError("the reports have no losses and no validation figures")
    figure, axes = drawing.pyplot().subplots(
        len(panels), 1, sharex=True, squeeze=False, figsize=(8, 0.6 + 2.3 * len(panels)), layout="constrained"
    )
    for (ax,), (title, unit, lines) in zip(axes, panels, strict=True):
        for label, (minutes, values) in lines.items():
            ax.plot(minutes, values, marker="o", markersize=3, label=label)
        for end in times[:-1]:
            ax.axvline(end[-1], color="0.8", linewidth=0.8, zorder=0)
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_ylabel(unit, fontsize=8)
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    top, bottom, begin = axes[0][0], axes[-1][0], 0.0
    for (name, _), end in zip(stages, times, strict=True):
        where, short = (begin + end[-1]) / 2, name.rpartition("/")[2]
        top.annotate(short, (where, 1.12), xycoords=("data", "axes fraction"), ha="left", fontsize=7, rotation=35)
        begin = end[-1]
    bottom.set_xlabel("minutes of training")
    drawing.save(figure, out, dpi=110)


def _lines(
    stages: Sequence[Stage], times: Sequence[Sequence[float]], names: Mapping[str, str]
) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> minutes and values, with a gap (NaN) after each stage; only what some stage has."""
    lines = {}
    for name, label in names.items():
        minutes: list[float] = []
        values: list[float] = []
        for (_, epochs), ends_of in zip(stages, times, strict=True):
            found = [(at, float(epoch[name])) for at, epoch in zip(ends_of, epochs, strict=True) if name in epoch]
            minutes += [at for at, _ in found] + [ends_of[-1]]
            values += [value for _, value in found] + [float("nan")]
        if len(values) > len(stages):
            lines[label] = (minutes, values)
    return lines


if __name__ == "__main__":
    sys.exit(main())
