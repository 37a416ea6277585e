"""The paper's tables 1 to 7 beside what was measured here, as Markdown, JSON, PNG and SVG.

    python -m training.reproduction.tables --table 3 --runs runs/tables --out training/reports/tables
    python -m training.reproduction.tables --table all --runs runs/tables --out training/reports/tables

Tables are written from what `sweep` has finished under RUNS and from the reports of earlier runs that are kept in
OUT; the reports that they rest on are copied there. Rows of networks that were never finished say so.

A number of the paper is `not tried` until a network was trained for it. At a small scale it is `undecided`: an
undertrained network refutes nothing. It is `stale` where only the paper's attacks, by their last iterate, have judged
the network, and none at full strength. Relative claims get their verdicts from `claims`.
"""

from __future__ import annotations

import argparse
import math
import sys
import tomllib
from collections.abc import Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any

from ..core import drawing
from ..core.files import write_json, write_text
from . import sweep
from .results import KINDS, Figure, Results
from .sweep import is_of

PAPER = Path(__file__).parent / "paper.toml"
LEVELS = ("T0", "T1", "T2")
STRONG = ("worst_case", "autoattack")


def read_paper() -> dict[str, Any]:
    return tomllib.loads(PAPER.read_text())


def build_table(number: str, results: Results) -> dict[str, Any]:
    """A table as a document: one row for each (data set, attack, network) of the paper's."""
    paper = read_paper()[number]
    rows = []
    for folder, attacks in paper.items():
        if not isinstance(attacks, dict):
            continue
        for attack, networks in attacks.items():
            for name, printed in networks.items():
                rows.append(build_row(results, f"{folder}/{name}", attack, paper["level"], printed))
    return {"table": number, "title": paper["title"], "level": paper["level"], "scale": results.scale, "rows": rows}


def build_row(results: Results, title: str, attack: str, level: str, printed: Sequence[float]) -> dict[str, Any]:
    """One row: the paper's three numbers, ours with intervals, the other threat levels, seconds and the verdict."""
    row: dict[str, Any] = {
        "set": title.partition("/")[0],
        "network": title.partition("/")[2],
        "attack": attack,
        "paper": {k: (None if math.isnan(v) else v) for k, v in zip(KINDS, printed, strict=True)},
        "verdict": "not tried",
    }

    def accuracy(level: str) -> Figure:
        return lambda run: run.accuracy(level, attack)

    def figure(kind: str) -> Figure:
        return lambda run: (run.figures(level, attack) or {}).get(kind)

    ours = {kind: results.interval(title, figure(kind)) for kind in KINDS}
    if ours["adversarial"] is None:
        return row
    row["ours"] = {k: vars(v) for k, v in ours.items() if v is not None}
    row["strong"] = strong_figures(results, title)
    row["verdict"] = "undecided" if "worst_case" in row["strong"] else f"stale: {why_stale(results, title)}"
    row["levels"] = {}
    for other in LEVELS:
        found = results.interval(title, accuracy(other))
        if found is not None:
            row["levels"][other] = round(found.value, 2)
    auroc = results.interval(title, lambda run: run.detection(level, attack, "auroc"))
    evaded = results.interval(title, lambda run: run.detection(level, attack, "sr_at"))
    if auroc is not None and evaded is not None:
        row["detection"] = {"auroc": auroc.value, "sr_at_5": 100 * evaded.value}
    row["seconds"] = {
        "training": round(sum(r.made["train_seconds"] for r in results.seeds(title))),
        "attack": round(
            sum(p.get("seconds", 0) for r in results.seeds(title) for n, p in r.parts.items() if is_of(n, attack))
        ),
    }
    row["reports"] = [f"{run.title}.json" for run in results.seeds(title)]
    return row


def strong_figures(results: Results, title: str) -> dict[str, Any]:
    """Attack at full strength -> images and adversarial accuracy with its interval, where it has judged the network."""
    found = {}
    for attack in STRONG:
        under = results.under(attack)
        interval = under.interval(title, methodcaller("accuracy", "T2", attack))
        if interval is not None:
            found[attack] = {"images": under.seeds(title)[0].images, **vars(interval)}
    return found


def why_stale(results: Results, title: str) -> str:
    """Why no attack at full strength has judged a network."""
    if title in results.strong:
        return "not judged at full strength yet"
    return "not trained again, and weights not kept"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def shown(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return ""
    return f"{interval['value']:.2f} ({interval['low']:.1f} to {interval['high']:.1f})"


def strong_shown(found: Mapping[str, Any] | None) -> str:
    """A figure at full strength, with its images and its seeds."""
    if found is None:
        return ""
    seeds = "one seed" if found["seeds"] == 1 else f"{found['seeds']} seeds"
    return f"{shown(found)}, {found['images']} images, {seeds}"


def table_markdown(document: Mapping[str, Any], about: str) -> str:
    """The table for people."""
    lines = [f"# Table {document['table']}: {document['title']}", ""]
    lines += [
        f"Per cent. The paper's numbers beside ours at the {document['scale']} scale: {about}",
        "Intervals are 95 %, over seeds where there are several, else over the test images. The table is about"
        f" {document['level']}; other levels of the same attack stand beside it (docs/reproduction.md). SR @ 5 %:"
        " misclassified and not flagged. The paper's attacks return their last iterate; the worst case keeps the best"
        " one of several attacks. `stale`: judged by last iterates alone.",
        "",
    ]
    lines += head_of(
        "set", "attack", "network", "paper: nat / adv / W", "ours: natural", "adversarial", "W-Robust", "seeds",
        "T0 / T1 / T2", "AUROC", "SR @ 5 %", "worst case", "AutoAttack", "training, attack (s)", "verdict",
    )  # fmt: skip
    for row in document["rows"]:
        ours = row.get("ours", {})
        levels = " / ".join(percent(row.get("levels", {}).get(level)) or "-" for level in LEVELS)
        detection = row.get("detection", {})
        seconds = row.get("seconds", {})
        cells = [
            row["set"],
            row["attack"],
            row["network"],
            " / ".join(percent(v) or "-" for v in row["paper"].values()),
            *(shown(ours.get(kind)) for kind in KINDS),
            str(ours["adversarial"]["seeds"]) if ours else "",
            levels if ours else "",
            f"{detection['auroc']:.3f}" if detection else "",
            percent(detection.get("sr_at_5")),
            *(strong_shown(row.get("strong", {}).get(attack)) for attack in STRONG),
            f"{seconds['training']}, {seconds['attack']}" if seconds else "",
            row["verdict"],
        ]
        lines.append(row_of(*cells))
    return "\n".join([*lines, ""])


def draw_table(document: Mapping[str, Any], out: Path) -> None:
    """W-Robust (adversarial, where the paper prints no other) of the paper and ours, a panel for each attack."""
    plt = drawing.pyplot()
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in document["rows"]:
        groups.setdefault((row["set"], row["attack"]), []).append(row)
    columns = min(4, len(groups))
    lines = math.ceil(len(groups) / columns)
    fig, axes = plt.subplots(lines, columns, figsize=(3.4 * columns, 2.9 * lines), squeeze=False, sharey=True)
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    for ax, ((folder, attack), rows) in zip(axes.flat, groups.items(), strict=False):
        kind = "w_robust" if any(row["paper"]["w_robust"] is not None for row in rows) else "adversarial"
        for i, row in enumerate(rows):
            if row["paper"][kind] is not None:
                ax.plot(i - 0.1, row["paper"][kind], "o", color="0.55", label="paper")
            if "ours" in row:
                o = row["ours"][kind]
                error = [[o["value"] - o["low"]], [o["high"] - o["value"]]]
                ax.errorbar(i + 0.1, o["value"], yerr=error, fmt="s", color="tab:blue", capsize=3, label="small scale")
        ax.set(title=f"{folder}, {attack}", ylim=(0, 100))
        ax.set_xticks(range(len(rows)), [row["network"] for row in rows], rotation=40, ha="right", fontsize=8)
        ax.grid(axis="y", alpha=0.3)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("W-Robust accuracy (%)" if kind == "w_robust" else "adversarial accuracy (%)")
    handles = {h.get_label(): h for ax in axes.flat for h in ax.get_legend_handles_labels()[0]}
    labels = {label: h for ax in axes.flat for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if labels or handles:
        fig.legend(labels.values(), labels.keys(), loc="upper right", fontsize=8, ncols=2)
    fig.suptitle(f"Table {document['table']}: {document['title']}", fontsize=10, x=0.01, ha="left")
    fig.tight_layout()
    drawing.save(fig, out, dpi=90)


def row_of(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head_of(*cells: str) -> list[str]:
    return [row_of(*cells), "|" + "---|" * len(cells)]


def write(number: str, results: Results, out: Path) -> dict[str, Any]:
    """table-N.md, .json, .png and .svg in `out`; returns the document."""
    document = build_table(number, results)
    base = out / f"table-{number}"
    draw_table(document, base)
    write_json(base.with_suffix(".json"), document)
    write_text(base.with_suffix(".md"), table_markdown(document, results.about))
    return document


def keep_reports(results: Results, out: Path) -> None:
    """The reports behind the tables, with how each network was made, beside them."""
    for title, run in results.runs.items():
        write_json(out / f"{title}.json", run.document)


def options(parser: argparse.ArgumentParser) -> None:
    """What every command needs that reads finished networks."""
    add = parser.add_argument
    made = parser.add_mutually_exclusive_group()
    made.add_argument("--runs", type=Path, default=Path("runs/tables"), help="what sweep made (default: runs/tables)")
    made.add_argument(
        "--kept", dest="runs", action="store_const", const=None, help="nothing but the reports that OUT keeps"
    )
    add("--spec", type=Path, default=sweep.SPECIFICATION, help="the specification that it was made by")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m training.reproduction.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    numbers = sorted(read_paper())
    parser.add_argument("--table", required=True, choices=[*numbers, "all"], help="which table of the paper")
    options(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("reports"), metavar="DIR", help="receives table-N.* (default: reports)"
    )
    args = parser.parse_args(argv)
    try:
        results = Results.read(sweep.Specification.read(args.spec), args.runs, args.out)
        documents = [write(n, results, args.out) for n in (numbers if args.table == "all" else [args.table])]
        keep_reports(results, args.out)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for document in documents:
        filled = sum("ours" in row for row in document["rows"])
        number = document["table"]
        print(f"table {number}: {filled} of {len(document['rows'])} rows, {args.out}/table-{number}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
