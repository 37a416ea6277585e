"""The ledger: each relative claim of the paper with its verdict, and each row of its tables with its own.

    python -m training.reproduction.claims --runs runs/tables --out training/reports/tables
    python -m training.reproduction.claims --runs runs/tables --out training/reports/tables --page docs/reproduction.md

Written as ledger.md and ledger.json from what `sweep` has finished under RUNS and what earlier runs left in OUT.

A relative claim (A above B) compares two networks of the same scale over seeds; it `holds` or `fails` where the 95 %
interval of the difference leaves out zero, and is `undecided` otherwise. With one seed the interval is that of the
test images alone, which does not cover other trainings: the verdict stays `undecided` and says which way the seed
points.

Two judges: the worst case, whose verdict counts, and the attacks that the paper names, whose last iterate gave the
verdict before and stands beside it. A claim that the worst case cannot judge is `stale`: its networks were not judged
again, or it is about last iterates in themselves. One that compares single steps alone keeps its verdict, since a
single step has no other iterate.
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

from ..core.files import write_json, write_text
from ..evaluation.report import ONE_STEP
from . import sweep, tables
from .full_width import full_width
from .ledger import HEADINGS, ledger_markdown, standing
from .results import KINDS, Measure, Results
from .tables import build_table

BEGIN, END = "<!-- ledger: made by training.reproduction.claims -->", "<!-- end of the ledger -->"

Side = tuple[str, str, str, str]  # network, level, attack, and one of KINDS or "gap"
JUDGE = "worst_case"
NOT_TRIED: dict[str, Any] = {"difference": None, "verdict": "not tried"}


@dataclass(frozen=True)
class Claim:
    """A relative claim: `left` lies above `right`; one of several that differ by the attack has the same text."""

    text: str
    where: str
    left: Side
    right: Side

    @property
    def attack(self) -> str:
        """The attack, or both, by which the paper or the text has it judged."""
        return " / ".join(dict.fromkeys((self.left[2], self.right[2])))

    @property
    def of_networks(self) -> bool:
        """Whether it compares two networks under one attack, so that another attack can judge it."""
        return self.left[0] != self.right[0]

    @property
    def of_single_steps(self) -> bool:
        return not self.of_networks and {self.left[2], self.right[2]} <= set(ONE_STEP)

    def by(self, attack: str) -> Claim:
        """The same of the networks under another attack."""
        (a, level, _, kind), (b, _, _, _) = self.left, self.right
        return Claim(self.text, self.where, (a, level, attack, kind), (b, level, attack, kind))


def figure_of(side: Side) -> tuple[str, Measure]:
    return side[0], Measure(*side[1:])


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
            above(text, "table 3", left, right, attack)
        for text, right in (
            ("AW-Net beats a static network of its training time", "static-long"),
            ("AW-Net beats a static network with a detector beside it", "static-detector"),
        ):
            above(text, "asked here", "awnet", right, attack)
    for attack in ("fgsm", "pgd_sat", "pgd_trades", "cw_inf"):
        for other in ("resnet34", "resnet50", "wrn34_8", "vgg16_bn", "repvgg_a2"):
            above(f"AW-Net's W-Robust is above {other}'s", "table 1", "awnet", other, attack)
    for attack in ("pgd_sat", "pgd_trades", "cw_inf"):
        text = "AW-Net's adversarial accuracy alone is above the static baseline's"
        above(text, "caution", "awnet", "static", attack, "adversarial")
    text = "FGSM falls further short of an iterative attack on AW-Net than on a static network"
    above(text, "caution", "awnet", "static", "pgd_sat", "gap")
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
        text = "CIFAR-100: AW-Net's W-Robust is above resnet34's"
        above(text, "table 1", "cifar100/awnet", "cifar100/resnet34", attack)
    return found


def verdict_on(claim: Claim, results: Results) -> dict[str, Any]:
    """{difference, verdict} of one judge: see the module's docstring."""
    found = results.difference(figure_of(claim.left), figure_of(claim.right))
    if found is None:
        return NOT_TRIED
    verdict = "holds" if found.low > 0 else "fails" if found.high < 0 else "undecided"
    if found.seeds == 1 and verdict != "undecided":  # another seed could turn it; nothing is known of that
        verdict = f"undecided: one seed, which says it {verdict}"
    elif found.seeds == 1:
        verdict = "undecided: one seed, which does not tell them apart"
    return {"difference": vars(found), "verdict": verdict}


def judge(same: Sequence[Claim], results: Results) -> dict[str, Any]:
    """The verdict on a claim, given once for each attack that it was judged by.

    Returns:
        {claim, where, verdict, difference}; `difference` is by the worst case, or None where that has not judged it.
        Beside it `autoattack`, the difference under AutoAttack or None; `last_iterate`, attack -> {difference,
        verdict} by the paper's attacks; and `changed`, whether a verdict of theirs was another.
    """
    claim = same[0]
    before = {one.attack: verdict_on(one, results) for one in same}
    again = verdict_on(claim.by(JUDGE), results.under(JUDGE)) if claim.of_networks else NOT_TRIED
    if all(found == NOT_TRIED for found in before.values()):
        verdict = "not tried"
    elif claim.of_single_steps:
        verdict = before[claim.attack]["verdict"]
    elif not claim.of_networks:
        verdict = "stale: about the last iterate of these attacks"
    elif again == NOT_TRIED:
        verdict = f"stale: {why_stale(claim, results)}"
    else:
        verdict = again["verdict"]
    kinds = {found["verdict"].partition(":")[0] for found in before.values()}
    return {
        "claim": claim.text,
        "where": claim.where,
        "verdict": verdict,
        "difference": again["difference"],
        "autoattack": verdict_on(claim.by("autoattack"), results.under("autoattack"))["difference"]
        if claim.of_networks
        else None,
        "last_iterate": before,
        "changed": kinds != {verdict.partition(":")[0]},
    }


def why_stale(claim: Claim, results: Results) -> str:
    """Which of the networks of a claim the worst case has not judged, and why."""
    missing: dict[str, list[str]] = {}
    for title in (claim.left[0], claim.right[0]):
        if not results.under(JUDGE).seeds(title):
            missing.setdefault(tables.why_stale(results, title), []).append(title.partition("/")[2])
    return "; ".join(f"{' and '.join(names)} {reason}" for reason, names in missing.items())


def judge_all(results: Results) -> list[dict[str, Any]]:
    """Every claim in the order of `HEADINGS`; stale ones that were decided before come before the others."""
    same: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims():
        same.setdefault((claim.text, claim.where), []).append(claim)

    def rank(judged: Mapping[str, Any]) -> tuple[int, bool]:
        before = {old["verdict"] for old in judged["last_iterate"].values()}
        return list(HEADINGS).index(standing(judged)), not before & {"holds", "fails"}

    return sorted((judge(one, results) for one in same.values()), key=rank)


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
            row["strong"] = tables.strong_figures(results, f"cifar10/{name}")
            for level in ("T1", "T2"):
                row[level] = {
                    "adversarial": mean_of(run.accuracy(level, attack) for run in runs),
                    "auroc": mean_of(run.detection(level, attack, "auroc") for run in runs),
                    "sr_at_5": 100 * mean_of(run.detection(level, attack, "sr_at") for run in runs),
                }
        rows.append(row)
    return rows


def full_strength(results: Results, attack: str = "pgd_trades") -> list[dict[str, Any]]:
    """Networks that the worst case has judged, one row each: its figures, AutoAttack's, and beside them the last
    iterate of `attack` against the same weights, and against those of the report before, where that is another."""
    rows = []
    under = results.under(JUDGE)
    for title in sorted({run.title.partition(".s")[0] for run in under.runs.values()}):
        row: dict[str, Any] = {"network": title, **tables.strong_figures(results, title)}
        for kind in KINDS:
            found = under.interval(*figure_of((title, "T2", JUDGE, kind)))
            row[kind] = None if found is None else vars(found)
        published = [run for run in results.seeds(title) if run.under(JUDGE)]
        row["seeds"], row["trained_again"] = len(published), any(run.again for run in published)
        row["last_iterate"] = {
            name: {
                "natural": fmean(run.clean for run in runs),
                attack: mean_of(run.accuracy("T2", attack) for run in runs),
            }
            for name, runs in (("same", [run.again or run for run in published]), ("published", published))
        }
        rows.append(row)
    return rows


def mean_of(values: Iterable[float | None]) -> float:
    """Their mean; nan where one is missing."""
    return fmean(math.nan if v is None else v for v in values)


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
        results = Results.read(sweep.Specification.read(args.spec), args.runs, args.out)
        judged, strong, extractors = judge_all(results), full_strength(results), readings(results)
        documents = [build_table(number, results) for number in sorted(tables.read_paper())]
        wide = full_width()
        text = ledger_markdown(documents, judged, strong, extractors, wide, results.about)
        if args.page:
            fill_in(args.page, text)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    whole = {"scale": results.scale, "claims": judged, "full_strength": strong, "readings": extractors}
    whole["full_width"] = wide
    write_json(args.out / "ledger.json", whole)
    write_text(args.out / "ledger.md", f"# Ledger\n\n{text}")
    verdicts = Counter(j["verdict"].partition(":")[0] for j in judged)
    changed = sum(j["changed"] for j in judged)
    counted = ", ".join(f"{n} {v}" for v, n in sorted(verdicts.items()))
    print(f"{len(judged)} claims: {counted}; {changed} changed, {args.out}/ledger.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
