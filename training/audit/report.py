"""The audit's report: audit.json with every finished part, and audit.md, which takes ten minutes to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import files
from ..evaluation.report import Report, table
from . import linter
from .card import FPR, statement, subject_of
from .cells import TITLES, levels, percent, right, with_interval

FORMAT = 1
PLOTS = {
    "worst_case": "Accuracy that is left, by radius of the attack.",
    "roc": "Attacked images flagged, against natural images flagged, for each threat level.",
    "scores": "Scores of natural and of attacked images, as log-odds, and the threshold of 5 % false positives.",
    "risk_coverage": "Wrong classes among the images that are accepted, by the share that is accepted.",
    "corruptions": "Natural images that are flagged although nobody attacked them.",
    "reliability": "How often an image was attacked, by what the score says.",
}


class AuditReport(Report):
    """audit.json and audit.md; beside the parts it holds the plan, which a resumed audit keeps, and what failed."""

    def __init__(self, path: Path, setup: dict[str, Any], fresh: bool = False) -> None:
        super().__init__(path, setup, fresh)
        kept = json.loads(path.read_text()) if path.is_file() and not fresh else {}
        self.plan: dict[str, Any] = kept.get("plan", {})
        self.failed: dict[str, str] = {}
        self.notes: list[str] = []

    def document(self) -> dict[str, Any]:
        findings = [f.document() for f in linter.lint(self.parts)]
        return {
            "format": FORMAT,
            "setup": self.setup,
            "plan": self.plan,
            "parts": self.parts,
            "failed": self.failed,
            "notes": self.notes,
            "findings": findings,
        }

    def write(self) -> dict[str, Any]:
        document = self.document()
        files.write_json(self.path, document)
        files.write_text(self.path.with_suffix(".md"), markdown(document))
        return document


def markdown(document: Mapping[str, Any]) -> str:
    """The report for people."""
    setup, parts = document["setup"], document["parts"]
    failing = linter.failures([linter.Finding(**f) for f in document["findings"]])
    lines = [f"# Audit of {subject_of(setup)}", ""]
    lines += [*_verdict(document, failing), ""]
    lines += ["## Who gets how far", ""]
    lines += [
        f"Test images of {setup['set']}, every pixel moved by at most {setup['eps']:g}/255, rounded to 8 bits. *SR@5*: "
        "misclassified *and* not flagged at the threshold that flags 5 % of natural validation images. Intervals "
        "hold 95 %.",
        "",
    ]
    for subject, title in TITLES.items():
        rows = [[name, str(p["images"]), right(name, p), *_detection(p)] for name, p in levels(parts, subject)]
        if rows:
            lines += [f"**{title[0].upper()}{title[1:]}**", ""]
            head = ["attack", "images", "accuracy", "flagged @ 5 %", "SR@5", "right or flagged", "AUROC"]
            lines += table(head, rows)
    lines += [*_who(parts), *_controls(parts), *_radii(parts), *_paper(parts), *_natural(parts), *_scores(parts)]
    lines += [*_findings(document), *_plan(document)]
    return "\n".join(lines).rstrip() + "\n"


def passed(document: Mapping[str, Any]) -> str:
    """What is said where nothing fails."""
    checks = {f["check"] for f in document["findings"] if f["judged"]}
    made = f"{len(checks)} of {len(linter.ADVICE)} checks"
    return f"The linter found no sign of masked gradients or of weak attacks ({made})."


def _verdict(document: Mapping[str, Any], failing: Sequence[str]) -> list[str]:
    lines = [statement(document["parts"])]
    if failing:
        lines.append(f"\n**The linter fails this audit**: {'; '.join(failing)}. See [Linter](#linter).")
    elif document["findings"]:
        lines.append(f"\n{passed(document)}")
    if document["failed"]:
        lines.append(f"\n**Parts that failed**: {', '.join(document['failed'])}. See [What was run](#what-was-run).")
    if document["plan"].get("left_out"):
        lines.append(f"\nLeft out, the budget was too small: {', '.join(document['plan']['left_out'])}.")
    return lines


def _detection(part: Mapping[str, Any]) -> list[str]:
    """Cells: flagged, SR@5, right or flagged, AUROC; empty without a detector."""
    if "fpr" in part:
        return [with_interval(part["fpr"][FPR], part["images"]), "", "", ""]
    if "tpr" not in part:
        return ["", "", "", ""]
    n, sr = part["images"], part["sr_at"][FPR]
    return [percent(part["tpr"][FPR]), with_interval(sr, n), percent(1 - sr), f"{part['auroc']:.4f}"]


def _who(parts: Mapping[str, Any]) -> list[str]:
    """Who of the attacks that make up a best case succeeded first, and what the exported file says."""
    lines = []
    for name, title in (("worst_case@8", "worst case"), ("T3@8", "T3")):
        counts = {n: c for n, c in parts.get(name, {}).get("broken_first_by", {}).items() if c}
        if counts:
            words = ", ".join(f"{n} {c}" for n, c in sorted(counts.items(), key=lambda item: -item[1]))
            lines += [f"Images of the {title} at 8/255 by who turned them first: {words}.", ""]
    if "onnx" in parts:
        p = parts["onnx"]
        lines += [
            f"The exported file agrees with torch on {p['images']} natural and adversarial images: "
            f"{p['other_class']} other classes, {p['other_verdict']} other verdicts, scores at most "
            f"{p['score_difference']:.1e} apart.",
            "",
        ]
    return lines


def _controls(parts: Mapping[str, Any]) -> list[str]:
    rows = []
    for subject, title in TITLES.items():
        prefix = f"{subject}:" if subject else ""
        part, half = parts.get(f"{prefix}T3@8"), parts.get(f"{prefix}worst_case@4")
        if part and "implied_accuracy" in part:
            here = with_interval(half["accuracy"], half["images"]) if half else ""
            rows.append([title, str(part["images"]), with_interval(part["implied_accuracy"], part["images"]), here])
    if not rows:
        return []
    text = (
        "A detector that holds at 8/255 implies a classifier that holds at 4/255 (Tramer, arXiv 2107.11630): the share "
        "of images that are right and accepted as they are and that no T3 attack turned. Where that exceeds what "
        "classifiers are known to reach, the attack is what is weak."
    )
    head = ["", "images", "implied accuracy at 4/255", "measured: worst case at 4/255"]
    return ["## What the detector's claim implies", "", text, "", *table(head, rows)]


def _radii(parts: Mapping[str, Any]) -> list[str]:
    rows = []
    for name in sorted(
        (n for n in parts if "@" in n and ":" not in n), key=lambda n: (n.rpartition("@")[0], linter.radius(n))
    ):
        what, _, eps = name.rpartition("@")
        part = parts[name]
        if what in ("worst_case", "T3") or what.startswith("T0/") or what in ("l2", "sparse", "patch"):
            accuracy = "" if what == "T3" else with_interval(part["accuracy"], part["images"])
            rows.append([what, eps, str(part["images"]), accuracy, *_detection(part)])
    if not rows:
        return []
    head = ["attack", "radius", "images", "accuracy", "flagged @ 5 %", "SR@5", "right or flagged", "AUROC"]
    return [
        "## By radius",
        "",
        "Radius in 1/255; of `l2` in pixel values of [0,1], of `sparse` in pixels, of `patch` in pixels of a side.",
        "",
        *table(head, rows),
        *_plot("worst_case"),
        *(_plot("roc") if any("roc" in part for part in parts.values()) else []),
    ]


def _paper(parts: Mapping[str, Any]) -> list[str]:
    rows = [
        [name.rpartition("@")[0], str(p["images"]), with_interval(p["accuracy"], p["images"]), *_detection(p)]
        for name, p in parts.items()
        if name.startswith(("T1/", "T2/")) and name.split("/")[1].rpartition("@")[0] in linter.PAPERS
    ]
    if not rows:
        return []
    text = "These return their last iterate, as published: they are upper bounds, and no claim rests on them."
    head = ["attack", "images", "accuracy", "flagged @ 5 %", "SR@5", "right or flagged", "AUROC"]
    return ["## The paper's attacks", "", text, "", *table(head, rows)]


def _natural(parts: Mapping[str, Any]) -> list[str]:
    """One row a kind: accuracy and false positives at the strongest, false positives at each strength."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for name, part in parts.items():
        if name.startswith(("corruptions/", "pictures/")) and "missing" not in part:
            kinds.setdefault("/".join(name.split("/")[:2]), []).append(part)
    if not kinds:
        return []
    rows = []
    for name, strengths in kinds.items():
        last = strengths[-1]
        rates = " ".join(f"{100 * part['fpr'][FPR]:.0f}" for part in strengths)
        accuracy = with_interval(last["accuracy"], last["images"]) if "accuracy" in last else ""
        served = [percent(last["served"][FPR]), percent(last["uncalibrated"])] if "served" in last else ["", ""]
        worst = max(strengths, key=lambda part: part["fpr"][FPR])
        at_1 = percent(worst["fpr"]["0.01"]) if "0.01" in worst["fpr"] else ""
        rows.append([name, str(last["images"]), accuracy, rates, at_1, *served])
    rows.sort(key=lambda row: -max(float(rate) for rate in row[3].split()))
    text = (
        "Natural images, changed or from elsewhere, the worst kind first. *Flagged*: by the thresholds of pristine "
        "images, in per cent, strength 1 to 5. *Served*: what a server says at strength 5, by the thresholds of the "
        "domain that holds the image; *uncalibrated*: the share that no domain holds."
    )
    head = ["kind", "images", "accuracy, strongest", "flagged @ 5 %", "worst @ 1 %", "served @ 5 %", "uncalibrated"]
    return ["## False positives", "", text, "", *table(head, rows), *_plot("corruptions")]


def _scores(parts: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, part in parts.items():
        if name.startswith("reliability/"):
            mapped = part.get("mapped")
            after = [f"{mapped['brier']:.3f}", f"{mapped['ece']:.3f}"] if mapped else ["", ""]
            rows.append(
                [name.partition("/")[2], str(part["images"]), f"{part['brier']:.3f}", f"{part['ece']:.3f}", *after]
            )
    scored = any("histogram" in part for part in parts.values())  # a static network has no score
    out = ["## The score", "", *(_plot("scores") if scored else []), *_plot("risk_coverage")]
    if rows:
        text = (
            "Half natural, half attacked images: how far the score, and the probability that the calibration makes of "
            "it, are from the truth. A constant 0.5 has a Brier score of 0.25 and no calibration error."
        )
        head = ["attacked at", "images", "Brier, score", "ECE, score", "Brier, probability", "ECE, probability"]
        out += [text, "", *table(head, rows), *_plot("reliability")]
    served = [
        [
            name,
            str(p["images"]),
            *(percent(p[k]) for k in ("first_domain", "uncalibrated")),
            percent(p["served_sr"][FPR]),
        ]
        for name, p in parts.items()
        if ":" not in name and "@" in name and "served_sr" in p
    ]
    if served:
        text = (
            "Where adversarial images lie. A server judges each by the thresholds of the first domain that holds its "
            "pixels and says `calibrated: false` where none does. *Served SR@5*: misclassified and not flagged then."
        )
        head = ["attack", "images", "in the first domain", "uncalibrated", "served SR@5"]
        out += ["## Domains under attack", "", text, "", *table(head, served)]
    return out


def _findings(document: Mapping[str, Any]) -> list[str]:
    findings = [linter.Finding(**f) for f in document["findings"]]
    if not findings:
        return []
    rows = [[f.check, "**fails**" if f.fails else "noted" if not f.holds else "passes", f.detail] for f in findings]
    lines = ["## Linter", "", "A check fails where what its name says is so. *Noted*: a paper-named attack.", ""]
    lines += table(["check", "", "detail"], rows)
    for check in linter.failures(findings):
        lines += [f"**{check}**: {linter.ADVICE[check]}", ""]
    return lines


def _plan(document: Mapping[str, Any]) -> list[str]:
    setup, plan = document["setup"], document["plan"]
    lines = ["## What was run", "", f"Budget {setup['budget_minutes']:g} minutes, seed {setup['seed']}."]
    if setup["limit"]:
        lines.append(f"At most the first {setup['limit']} images (--limit).")
    if setup["groups"]:
        lines.append("Only some groups (--parts).")
    lines += [f"{note}." for note in document["notes"]] + [""]
    seconds = {name: p["seconds"] for name, p in document["parts"].items() if "seconds" in p}
    rows = []
    for group, members in plan.get("groups", {}).items():
        spent = sum(seconds.get(m, 0) for m in members)
        wanted = plan["wanted"][group]
        images = plan["images"].get(group)
        rows.append([group, str(wanted), "left out" if images is None else str(images), f"{spent:.0f}"])
    lines += table(["group", "images wanted", "images", "seconds"], rows)
    for name, error in document["failed"].items():
        lines += [f"- {name} failed: {error}"]
    return lines


def _plot(name: str) -> list[str]:
    return [f"![{PLOTS[name]}]({name}.svg)", "", f"*{PLOTS[name]}*", ""]
