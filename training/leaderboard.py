"""Builds the leaderboard: every variant that was tried, as it was judged on validation images, the best one first.

    python -m training.leaderboard
    python -m training.leaderboard --reports training/reports --out training/reports/leaderboard

Reads REPORTS/operating-points/NAME/points.json (of training.operating_points), and variants of before it in
REPORTS/variants-validation-NAME.json (of training.evaluate), which were judged by weaker attacks and stand below.
Writes OUT.json and OUT.md. The order is the rule of docs/decisions/0019-the-operating-point.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domain.shares import wilson

from .core import files
from .evaluation.natural import worst_kind
from .evaluation.points_report import FPRS, LEAST_CLEAN, RULE, percent
from .evaluation.report import table
from .evaluation.tolerance import MOST_FLAGGED

FORMAT = 1
Share = list[float]  # [value, low, high]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m training.leaderboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, default = parser.add_argument, Path("training/reports")
    add("--reports", type=Path, default=default, metavar="DIR", help=f"where reports are (default: {default})")
    add("--out", type=Path, metavar="STEM", help="OUT.json and OUT.md (default: DIR/leaderboard)")
    args = parser.parse_args(argv)
    out = args.out or args.reports / "leaderboard"
    try:
        document = leaderboard(args.reports)
        files.write_json(out.with_suffix(".json"), document)
        files.write_text(out.with_suffix(".md"), markdown(document))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(out.with_suffix(".md"))
    return 0


def leaderboard(reports: Path) -> dict[str, Any]:
    """The document of all reports in a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: one is no report, or is of test images.
    """
    rows: list[dict[str, Any]] = []
    for pattern, read in (("operating-points/*/points.json", of_points), ("variants-validation-*.json", of_evaluation)):
        for path in sorted(reports.glob(pattern)):
            try:
                rows.append(read(path, json.loads(path.read_text("utf-8"))))
            except (KeyError, TypeError, json.JSONDecodeError) as error:
                raise ValueError(f"{path} is no report of a variant ({error})") from error
    if not rows:
        raise FileNotFoundError(f"no operating-points/*/points.json in {reports}: training.operating_points makes them")
    rows.sort(key=lambda row: (rank(row), row["name"]))
    about = {"least_clean": LEAST_CLEAN, "most_flagged": MOST_FLAGGED}
    return {"format": FORMAT, **about, "rows": rows}


def rank(row: Mapping[str, Any]) -> tuple[float, ...]:
    """What sorts rows, the best one first: judged alike, clean enough, quiet enough, finished, worst case, ..."""
    flagged, auto = row["flagged"], row["autoattack"]
    return (
        not row["worst_case_judged"],
        row["clean"][0] < LEAST_CLEAN,
        flagged is None or flagged["share"][0] > MOST_FLAGGED,
        not row["finished"],
        -row["robust"][0],
        -auto[0] if auto else 0.0,
        -row["clean"][0],
    )


def of_points(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen point of a report of training.operating_points, or the cleanest of mode auto, finished ones first."""
    points = {p["name"]: p for p in document["points"]}
    auto = [p for p in points.values() if p["mode"] == "auto"]
    best = max(auto, key=lambda p: (p["finished"], p["clean"][0]))
    one = points[document["chosen"]] if document["chosen"] else best
    setup, kinds = document["setup"], document["false_positives"]
    flagged = None
    if kinds:
        name, share = worst_kind(kinds, ("judging",), FPRS[0])
        flagged = {"kind": name, "share": share}
    return {
        "name": path.parent.name,
        "report": f"operating-points/{path.parent.name}/points.json",
        "sha256": document["sha256"],
        "parameters": document["parameters"],
        "point": one["name"],
        "judge": f"worst case, {setup['steps']} steps, {setup['images']} images",
        "worst_case_judged": True,
        "clean": one["clean"],
        "robust": one["worst_case"],
        "finished": one["finished"],
        "mode_robust": points["robust"]["worst_case"],
        "autoattack": one["autoattack"]["accuracy"] if one["autoattack"] else None,
        "flagged": flagged,
        "alarms": one["flagged"][FPRS[0]] if one["flagged"] else None,
    }


def of_evaluation(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """A report of training.evaluate on validation images: the attack that leaves least, under its name."""
    setup, parts = document["setup"], document["parts"]
    if setup["split"] != "validation":
        raise ValueError(f"{path} is of {setup['split']} images, and nothing is chosen by those")
    attacks = {n: p for n, p in parts.items() if n.split("/")[0] in ("T1", "T2", "worst_case")}
    judge, least = min(attacks.items(), key=lambda item: float(item[1]["accuracy"]))
    steps = f", {setup['steps']} steps" if setup.get("steps") else ""
    return {
        "name": path.stem.removeprefix("variants-validation-"),
        "report": path.name,
        "sha256": setup["sha256"],
        "parameters": None,
        "point": "auto, Eq. 16",
        "judge": f"{judge}{steps}, {least['images']} images",
        "worst_case_judged": judge == "worst_case",
        "clean": share_of(parts["clean"]),
        "robust": share_of(least),
        "finished": True,
        "mode_robust": None,
        "autoattack": None,
        "flagged": None,
        "alarms": None,
    }


def share_of(part: Mapping[str, Any]) -> Share:
    """A part's accuracy with its interval."""
    return wilson(round(part["accuracy"] * part["images"]), part["images"])


def markdown(document: Mapping[str, Any]) -> str:
    """The table for people."""
    lines = [
        "# Leaderboard",
        "",
        f"Validation images; per cent, with 95 % intervals. The order is the rule of {RULE}: at least "
        f"{100 * document['least_clean']:g} % clean first; of those, the ones whose worst judging kind of images is "
        f"flagged by at most {100 * document['most_flagged']:g} % at the 1 % threshold; then the highest worst case, "
        "AutoAttack, clean accuracy. Thresholds that flag nothing meet the second condition: what they flag of the "
        "worst case's images stands beside it.",
        "",
    ]
    head = ["variant", "point", "parameters", "clean", "worst case", "mode robust", "AutoAttack"]
    head += ["worst judging kind flagged, 1 %", "worst case flagged, 1 %", "judge", "report"]
    alike = [row for row in document["rows"] if row["worst_case_judged"]]
    lines += table(head, [cells(row) for row in alike])
    if rest := [row for row in document["rows"] if not row["worst_case_judged"]]:
        lines += [
            "Judged by weaker attacks, before there was a worst case: of the same network the judge above would leave "
            "less. By what those attacks left:",
            "",
        ]
        keep = (0, 3, 4, 9, 10)
        short = [head[i] for i in keep]
        lines += table(
            ["accuracy under attack" if h == "worst case" else h for h in short],
            [[cells(r)[i] for i in keep] for r in rest],
        )
    return "\n".join(lines).rstrip() + "\n"


def cells(row: Mapping[str, Any]) -> list[str]:
    flagged, size = row["flagged"], row["parameters"]
    return [
        row["name"],
        row["point"],
        f"{size / 1e6:.1f} M" if size else "",
        percent(row["clean"]),
        percent(row["robust"]) if row["finished"] else f"at most {100 * row['robust'][0]:.1f}",
        percent(row["mode_robust"]) if row["mode_robust"] else "",
        percent(row["autoattack"]) if row["autoattack"] else "",
        f"{percent(flagged['share'])}, {flagged['kind']}" if flagged else "",
        percent(row["alarms"]) if row["alarms"] else "",
        row["judge"],
        f"[{row['report']}]({row['report']})",
    ]


if __name__ == "__main__":
    sys.exit(main())
