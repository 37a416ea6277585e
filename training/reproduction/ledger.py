"""The ledger as Markdown: orders by what became of their verdict, then what they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .full_width import full_width_markdown
from .results import KINDS
from .tables import STRONG, head_of, percent, row_of, shown, strong_shown

HEADINGS = {
    "changed": "Orders whose verdict changed",
    "stands": "Orders whose verdict stands",
    "stale": "Orders that are stale",
    "not tried": "Orders that were not tried",
}


def standing(judged: Mapping[str, Any]) -> str:
    """Key of `HEADINGS`."""
    kind: str = judged["verdict"].partition(":")[0]
    if kind in HEADINGS:
        return kind
    return "changed" if judged["changed"] else "stands"


def gap(difference: Mapping[str, Any] | None) -> str:
    """A difference in points with its interval."""
    if difference is None:
        return ""
    return f"{difference['value']:+.2f} ({difference['low']:+.1f} to {difference['high']:+.1f})"


def claim_row(judged: Mapping[str, Any]) -> str:
    difference = judged["difference"]
    before = [
        f"{attack}: {gap(old['difference'])} {old['verdict']}".replace("  ", " ")
        for attack, old in judged["last_iterate"].items()
    ]
    seeds = str(difference["seeds"]) if difference else ""
    cells = [judged["claim"], judged["where"], judged["verdict"], gap(difference), seeds, gap(judged["autoattack"])]
    return row_of(*cells, "<br>".join(before))


def full_strength_markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["### Networks at full strength", ""]
    lines += [
        "Worst case and AutoAttack, and PGD_trades by its last iterate against the same weights. Where weights were",
        "not kept, the network was trained again by the same recipe and seed, which does not repeat bit for bit: what",
        "was published of the first one stands in the last two columns.",
        "",
    ]
    head = ["network", "seeds", "natural", "worst case", "W-Robust", "AutoAttack", "images", "PGD_trades"]
    lines += head_of(*head, "published: natural", "PGD_trades")
    for row in rows:
        images = " / ".join(str(row[attack]["images"]) for attack in STRONG if attack in row)
        published = row["last_iterate"]["published"] if row["trained_again"] else {}
        cells = [row["network"], str(row["seeds"]), *(shown(row[kind]) for kind in KINDS)]
        cells.append(shown(row.get("autoattack")))
        cells += [images, percent(row["last_iterate"]["same"]["pgd_trades"])]
        lines.append(row_of(*cells, percent(published.get("natural")), percent(published.get("pgd_trades"))))
    return [*lines, ""]


def ledger_markdown(
    documents: Sequence[Mapping[str, Any]],
    judged: Sequence[Mapping[str, Any]],
    strong: Sequence[Mapping[str, Any]],
    extractors: Sequence[Mapping[str, Any]],
    wide: Sequence[Mapping[str, Any]],
    about: str,
) -> str:
    """Relative claims with their verdicts, rows at the paper's width, readings of the extractor, then every row of the
    paper."""
    lines = [
        f"Made by `python -m training.reproduction.claims` at the {documents[0]['scale']} scale: {about}",
        "Figures are in per cent, intervals 95 %: over seeds (Student's t; differences are taken seed by seed), or",
        "over the test images where there is one seed. An interval over seeds says what another seed would do on the",
        "same images, not what other images would.",
        "Networks this undertrained refute no number of the paper, so numbers are `undecided`; orders get a verdict of",
        "their own, which is about this scale alone. Reports: `training/reports/tables/`.",
        "",
        "A verdict is the worst case's; AutoAttack's difference, on fewer images, stands beside it without one. What",
        "the last iterate of the paper's attacks said is the last column. `stale`: not judged by the worst case, and",
        "what the last iterate said does not stand by itself.",
        "",
    ]
    head = head_of("claim", "from", "verdict at this scale", "worst case", "seeds", "AutoAttack", "by the last iterate")
    for key, heading in HEADINGS.items():
        rows = [claim_row(j) for j in judged if standing(j) == key]
        if rows:
            lines += [f"### {heading}", "", *head, *rows, ""]
    if strong:
        lines += full_strength_markdown(strong)
    lines += full_width_markdown(wide)
    lines += ["### The extractor's readings, under PGD_trades", ""]
    lines += head_of(
        "extractor", "network", "seeds", "natural", "T1", "T2", "AUROC at T1", "at T2", "SR @ 5 % at T2", "worst case"
    )
    for row in extractors:
        cells = [row["extractor"], row["network"], str(row["seeds"] or "not tried")]
        if row["seeds"]:
            cells += [percent(row["natural"]), percent(row["T1"]["adversarial"]), percent(row["T2"]["adversarial"])]
            cells += [f"{row[level]['auroc']:.3f}" for level in ("T1", "T2")] + [percent(row["T2"]["sr_at_5"])]
            cells.append(strong_shown(row["strong"].get("worst_case")) or "stale")
        lines.append(row_of(*cells, *[""] * (10 - len(cells))))
    lines += ["", "### Numbers", ""]
    lines += head_of(
        "table", "set", "attack", "network", "paper: nat / adv / W", "ours", "seeds", "worst case", "AutoAttack",
        "verdict", "report",
    )  # fmt: skip
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
                    *(strong_shown(row.get("strong", {}).get(attack)) for attack in STRONG),
                    row["verdict"].partition(":")[0],
                    ", ".join(f"`{report}`" for report in row["reports"]) if ours else "",
                )
            )
    return "\n".join([*lines, ""])
