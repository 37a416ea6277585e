"""The ledger: each relative claim of the paper with its verdict, and each row of its tables with its own.

    python -m training.reproduction.claims --runs runs/tables --out training/reports/tables
    python -m training.reproduction.claims --runs runs/tables --out training/reports/tables --page docs/reproduction.md

Written as ledger.md and ledger.json from what `sweep` has finished under RUNS.

A relative claim (A above B) compares two networks of the same scale over seeds; it `holds` or `fails` where the 95 %
interval of the difference leaves out zero, and is `undecided` otherwise. With one seed the interval is that of the
test images alone, which does not cover other trainings: the verdict stays `undecided` and says which way the seed
points.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..files import write_json, write_text
from . import sweep, tables
from .results import KINDS, Figure, FinishedRun, Results
from .tables import build_table, head_of, percent, row_of, shown

BEGIN, END = "<!-- ledger: made by training.reproduction.claims -->", "<!-- end of the ledger -->"

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

    def gap(run: FinishedRun) -> float | None:
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


def ledger_markdown(
    documents: Sequence[Mapping[str, Any]],
    judged: Sequence[Mapping[str, Any]],
    extractors: Sequence[Mapping[str, Any]],
    about: str,
) -> str:
    """Relative claims with their verdicts, readings of the extractor, then every row of the paper."""
    lines = [
        f"Made by `python -m training.reproduction.claims` at the {documents[0]['scale']} scale: {about}",
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m training.reproduction.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tables.options(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("reports"), metavar="DIR", help="receives ledger.* (default: reports)"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="a Markdown page whose ledger is replaced, too")
    args = parser.parse_args(argv)
    try:
        results = Results.read(sweep.Specification.read(args.spec), args.runs)
        judged, extractors = [judge(claim, results) for claim in claims()], readings(results)
        documents = [build_table(number, results) for number in sorted(tables.read_paper())]
        text = ledger_markdown(documents, judged, extractors, results.about)
        if args.page:
            fill_in(args.page, text)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    whole = {"scale": results.scale, "claims": judged, "readings": extractors}
    write_json(args.out / "ledger.json", whole)
    write_text(args.out / "ledger.md", f"# Ledger\n\n{text}")
    verdicts = Counter(j["verdict"].partition(":")[0] for j in judged)
    print(f"{len(judged)} claims: {', '.join(f'{n} {v}' for v, n in sorted(verdicts.items()))}, {args.out}/ledger.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
