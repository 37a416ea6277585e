"""The paper's tables and claims beside what was measured here: tables 1 to 7, and the ledger of verdicts.

    python -m training.evaluate --table 3 --runs runs/tables --out training/reports/tables
    python -m training.evaluate --table all --runs runs/tables --out training/reports/tables

A table is written as Markdown, JSON, PNG and SVG, from what `sweep` has finished under RUNS; the reports
that it rests on are copied beside it. Rows of networks that are not finished say so. `--table all` writes every
table and the ledger (`ledger.md`): each row of the paper with its verdict, and each relative claim with its own.

Verdicts. A number of the paper is `not tried` until a network was trained for it. At a small scale it is
`undecided`: an undertrained network refutes nothing. A relative claim (A above B) compares two networks of the same
scale over seeds; it `holds` or `fails` where the 95 % interval of the difference leaves out zero, and is `undecided`
otherwise. With one seed the interval is that of the test images alone, which knows nothing of other trainings: the
verdict stays `undecided` and says which way the seed points.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..evaluation.report import write_text
from . import sweep
from .results import KINDS, Figure, Results, Run, is_of

PAPER = Path(__file__).parent / "paper.toml"
LEVELS = ("T0", "T1", "T2")
BEGIN, END = "<!-- ledger: made by training.evaluate -->", "<!-- end of the ledger -->"


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

    def figure(kind: str) -> Figure:
        return lambda run: (run.figures(level, attack) or {}).get(kind)

    ours = {kind: results.interval(title, figure(kind)) for kind in KINDS}
    if ours["adversarial"] is None:
        return row
    row["verdict"] = "undecided"
    row["ours"] = {k: vars(v) for k, v in ours.items() if v is not None}
    row["levels"] = {}
    for other in LEVELS:
        found = results.interval(title, lambda run, o=other: run.accuracy(o, attack))  # type: ignore[misc]
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


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def shown(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return ""
    return f"{interval['value']:.2f} ({interval['low']:.1f} to {interval['high']:.1f})"


def table_markdown(document: Mapping[str, Any], about: str) -> str:
    """The table for people."""
    lines = [f"# Table {document['table']}: {document['title']}", ""]
    lines += [
        f"Per cent. The paper's numbers beside ours at the {document['scale']} scale: {about}",
        "Intervals are 95 %, over seeds where there are several, else over the test images. The table is about"
        f" {document['level']}; other levels of the same attack stand beside it (docs/reproduction.md). SR @ 5 %:"
        " misclassified and not flagged.",
        "",
    ]
    lines += head_of(
        "set", "attack", "network", "paper: nat / adv / W", "ours: natural", "adversarial", "W-Robust", "seeds",
        "T0 / T1 / T2", "AUROC", "SR @ 5 %", "training, attack (s)", "verdict",
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
            f"{seconds['training']}, {seconds['attack']}" if seconds else "",
            row["verdict"],
        ]
        lines.append(row_of(*cells))
    return "\n".join([*lines, ""])


def draw_table(document: Mapping[str, Any], out: Path) -> None:
    """W-Robust (adversarial, where the paper prints no other) of the paper and ours, a panel for each attack."""
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ValueError("pictures need the package matplotlib: pip install matplotlib") from error
    matplotlib.rcParams["svg.hashsalt"] = "awnet"  # the same numbers give the same file
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
    for suffix in ("png", "svg"):
        partial = out.with_suffix(f".partial.{suffix}")
        fig.savefig(partial, dpi=90, metadata={"Date": None} if suffix == "svg" else None)
        partial.replace(out.with_suffix(f".{suffix}"))
    plt.close(fig)


Side = tuple[str, str, str, str]  # network, level, attack, and one of KINDS or "gap"


@dataclass(frozen=True)
class Claim:
    """A relative claim: `left` lies above `right`."""

    text: str
    where: str
    left: Side
    right: Side


def figure_of(side: Side) -> tuple[str, Figure]:
    """(network, figure): one of KINDS, or `gap`, by how much FGSM leaves a higher accuracy than the attack."""
    title, level, attack, kind = side

    def gap(run: Run) -> float | None:
        one, many = run.accuracy(level, "fgsm"), run.accuracy(level, attack)
        return None if one is None or many is None else one - many

    return title, gap if kind == "gap" else lambda run: (run.figures(level, attack) or {}).get(kind)


def claims() -> list[Claim]:
    """Orders that the paper asserts or shows, the cautions of docs/reproduction.md, and what the paper leaves out."""
    found: list[Claim] = []

    def above(text: str, where: str, left: str, right: str, attack: str, kind: str = "w_robust") -> None:
        left, right = (name if "/" in name else f"cifar10/{name}" for name in (left, right))
        found.append(Claim(text, where, (left, "T2", attack, kind), (right, "T2", attack, kind)))

    for attack in ("pgd_trades", "cw_inf"):
        for text, left, right in (
            ("MixBN lifts dynamic weights alone", "awnet-mixbn", "awnet-dynamic"),
            ("the static baseline beats dynamic weights alone", "static", "awnet-dynamic"),
            ("the static baseline beats dynamic weights with MixBN", "static", "awnet-mixbn"),
            ("the whole AW-Net beats the static baseline", "awnet", "static"),
        ):
            above(f"{text} ({attack})", "table 3", left, right, attack)
        for text, right in (
            ("AW-Net beats a static network of its training time", "static-long"),
            ("AW-Net beats a static network with a detector beside it", "static-detector"),
        ):
            above(f"{text} ({attack})", "asked here", "awnet", right, attack)
    for attack in ("fgsm", "pgd_sat", "pgd_trades", "cw_inf"):
        for other in ("resnet34", "resnet50", "wrn34_8", "vgg16_bn", "repvgg_a2"):
            above(f"AW-Net's W-Robust is above {other}'s ({attack})", "table 1", "awnet", other, attack)
    for attack in ("pgd_sat", "pgd_trades", "cw_inf"):
        text = f"AW-Net's adversarial accuracy alone is above the static baseline's ({attack})"
        above(text, "caution", "awnet", "static", attack, "adversarial")
    above("FGSM falls further short of PGD_sat on AW-Net than on a static network", "caution", "awnet", "static",
          "pgd_sat", "gap")  # fmt: skip
    awnet = "cifar10/awnet"
    for text, left, right in (
        ("the adaptive attack is stronger than PGD_trades on AW-Net", "pgd_trades", "adaptive"),
        ("PGD_sat is stronger than PGD_trades on AW-Net, as on static networks", "pgd_trades", "pgd_sat"),
    ):
        sides = [(awnet, "T2", attack, "adversarial") for attack in (left, right)]
        found.append(Claim(text, "table 7" if right == "adaptive" else "caution", sides[0], sides[1]))
    for text, level in (("transfer (T0)", "T0"), ("a white box that ignores the detector (T1)", "T1")):
        sides = [(awnet, one, "pgd_trades", "adversarial") for one in (level, "T2")]
        found.append(Claim(f"PGD_trades through everything (T2) is stronger than {text}", "caution", *sides))
    for text, level in (("an FGSM that ignores the detector (T1)", "T1"), ("a transferred FGSM (T0)", "T0")):
        sides = [(awnet, one, "fgsm", "adversarial") for one in ("T2", level)]
        found.append(
            Claim(f"{text} is stronger than FGSM through everything (T2): the gap is masking", "caution", *sides)
        )
    above("beta 4 beats beta 1", "table 4", "awnet", "awnet-beta1", "pgd_sat")
    above("beta 4 beats beta 5", "table 4", "awnet", "awnet-beta5", "pgd_sat")
    above("AW-Net beats RDI-ResNet-38", "table 5", "awnet", "rdi_resnet38", "pgd_sat")
    for attack in ("fgsm", "pgd_sat", "pgd_trades", "cw_inf"):
        text = f"CIFAR-100: AW-Net's W-Robust is above resnet34's ({attack})"
        above(text, "table 1", "cifar100/awnet", "cifar100/resnet34", attack)
    return found


def judge(claim: Claim, results: Results) -> dict[str, Any]:
    """{claim, where, difference, verdict}: see the module's docstring."""
    found = results.difference(figure_of(claim.left), figure_of(claim.right))
    document: dict[str, Any] = {"claim": claim.text, "where": claim.where, "difference": None, "verdict": "not tried"}
    if found is not None:
        document["difference"] = vars(found)
        verdict = "holds" if found.low > 0 else "fails" if found.high < 0 else "undecided"
        if found.seeds == 1 and verdict != "undecided":  # another seed could turn it; nothing is known of that
            verdict = f"undecided: one seed, which says it {verdict}"
        document["verdict"] = verdict
    return document


READINGS = {
    "awnet-clean-frozen": "trained on clean images, then frozen",
    "awnet-detector-frozen": "trained to detect, then frozen",
    "awnet": "trained to detect, then along with the rest",
    "awnet-scratch": "trained along from its random start",
    "static-detector": "trained to detect, then along, beside a static network",
}


def readings(results: Results, attack: str = "pgd_trades") -> list[dict[str, Any]]:
    """What the extractor of AW-Net can be (sec. 5.1: its gradient "does not be updated"), one row each."""
    rows = []
    for name, about in READINGS.items():
        runs = results.seeds(f"cifar10/{name}")
        row: dict[str, Any] = {"network": name, "extractor": about, "seeds": len(runs)}
        if runs:
            row["natural"] = fmean(run.clean for run in runs)
            for level in ("T1", "T2"):
                row[level] = {
                    "adversarial": mean_of(run.accuracy(level, attack) for run in runs),
                    "auroc": mean_of(run.detection(level, attack, "auroc") for run in runs),
                    "sr_at_5": 100 * mean_of(run.detection(level, attack, "sr_at") for run in runs),
                }
        rows.append(row)
    return rows


def mean_of(values: Iterable[float | None]) -> float:
    """Their mean; nan where one is missing."""
    return fmean(math.nan if v is None else v for v in values)


def row_of(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head_of(*cells: str) -> list[str]:
    return [row_of(*cells), "|" + "---|" * len(cells)]


def ledger_markdown(
    documents: Sequence[Mapping[str, Any]],
    judged: Sequence[Mapping[str, Any]],
    extractors: Sequence[Mapping[str, Any]],
    about: str,
) -> str:
    """Relative claims with their verdicts, readings of the extractor, then every row of the paper."""
    lines = [
        f"Made by `python -m training.evaluate --table all` at the {documents[0]['scale']} scale: {about}",
        "Figures are in per cent, intervals 95 %: over seeds (Student's t; differences are taken seed by seed), or",
        "over the test images where there is one seed. An interval over seeds says what another seed would do on the",
        "same images, not what other images would.",
        "Networks this undertrained refute no number of the paper, so numbers are `undecided`; orders get a verdict of",
        "their own, which is about this scale alone. Reports: `training/reports/tables/`.",
        "",
        "### Orders",
        "",
        *head_of("claim", "from", "difference in points", "seeds", "verdict at this scale"),
    ]
    for j in judged:
        d = j["difference"]
        gap = "" if d is None else f"{d['value']:+.2f} ({d['low']:+.1f} to {d['high']:+.1f})"
        lines.append(row_of(j["claim"], j["where"], gap, str(d["seeds"]) if d else "", j["verdict"]))
    lines += ["", "### The extractor's readings, under PGD_trades", ""]
    lines += head_of("extractor", "network", "seeds", "natural", "T1", "T2", "AUROC at T1", "at T2", "SR @ 5 % at T2")
    for row in extractors:
        cells = [row["extractor"], row["network"], str(row["seeds"] or "not tried")]
        if row["seeds"]:
            cells += [percent(row["natural"]), percent(row["T1"]["adversarial"]), percent(row["T2"]["adversarial"])]
            cells += [f"{row[level]['auroc']:.3f}" for level in ("T1", "T2")] + [percent(row["T2"]["sr_at_5"])]
        lines.append(row_of(*cells, *[""] * (9 - len(cells))))
    lines += ["", "### Numbers", ""]
    lines += head_of("table", "set", "attack", "network", "paper: nat / adv / W", "ours", "seeds", "verdict", "report")
    for document in documents:
        for row in document["rows"]:
            ours = row.get("ours")
            lines.append(
                row_of(
                    document["table"],
                    row["set"],
                    row["attack"],
                    row["network"],
                    " / ".join(percent(v) or "-" for v in row["paper"].values()),
                    " / ".join(shown(ours[k]) for k in KINDS) if ours else "",
                    str(ours["adversarial"]["seeds"]) if ours else "",
                    row["verdict"],
                    ", ".join(f"`{report}`" for report in row["reports"]) if ours else "",
                )
            )
    return "\n".join([*lines, ""])


def fill_in(page: Path, text: str) -> None:
    """Put `text` between the markers of a page; ValueError where they are missing."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no lines {BEGIN} and {END}")
    write_text(page, f"{before}{begin}\n\n{text}\n{end}{after}")


def write(number: str, results: Results, out: Path) -> dict[str, Any]:
    """table-N.md, .json, .png and .svg in `out`; returns the document."""
    document = build_table(number, results)
    out.mkdir(parents=True, exist_ok=True)
    base = out / f"table-{number}"
    draw_table(document, base)
    write_text(base.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
    write_text(base.with_suffix(".md"), table_markdown(document, results.about))
    return document


def keep_reports(results: Results, runs: Path, out: Path) -> None:
    """The reports behind the tables, with how each network was made, beside them."""
    for title, run in results.runs.items():
        target = out / f"{title}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        report = json.loads((runs / title / "report.json").read_text())
        write_text(target, json.dumps(report | {"made": run.made}, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m training.evaluate --table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    numbers = sorted(read_paper())
    add("--table", required=True, choices=[*numbers, "all"], help="which table of the paper; all: and the ledger")
    add(
        "--runs",
        type=Path,
        default=Path("runs/tables"),
        help="what sweep made (default: runs/tables)",
    )
    add("--spec", type=Path, default=sweep.SPECIFICATION, help="the specification that it was made by")
    add("--out", type=Path, default=Path("reports"), metavar="DIR", help="receives the table (default: reports)")
    add("--page", type=Path, metavar="FILE", help="with all: a Markdown page whose ledger is replaced, too")
    args = parser.parse_args(argv)
    try:
        results = Results.read(sweep.Specification.read(args.spec), args.runs)
        documents = [write(n, results, args.out) for n in (numbers if args.table == "all" else [args.table])]
        keep_reports(results, args.runs, args.out)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.table == "all":
        judged = [judge(claim, results) for claim in claims()]
        extractors = readings(results)
        text = ledger_markdown(documents, judged, extractors, results.about)
        whole = {"scale": results.scale, "claims": judged, "readings": extractors}
        write_text(args.out / "ledger.json", json.dumps(whole, indent=1) + "\n")
        write_text(args.out / "ledger.md", f"# Ledger\n\n{text}")
        if args.page:
            fill_in(args.page, text)
    for document in documents:
        filled = sum("ours" in row for row in document["rows"])
        number = document["table"]
        print(f"table {number}: {filled} of {len(document['rows'])} rows, {args.out}/table-{number}.md")
    return 0
