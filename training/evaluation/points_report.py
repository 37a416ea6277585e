"""The report of operating points: the rule that takes the default, the table, and the plot. Asks no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import drawing
from .natural import worst_kind
from .report import table

LEAST_CLEAN = 0.865
PAPER = (0.9149, 0.5051)  # its Table 1: clean, and PGD-20's last iterate, of 10,000 test images at 26 M parameters
RULE = "docs/decisions/0019-the-operating-point.md"
FPRS = ("0.01", "0.05")
Rows = Sequence[Mapping[str, Any]]


def tied(rows: Rows, least_clean: float) -> list[str]:
    """The points of mode auto that are clean enough and finished, and of which no other has a higher worst case."""
    there = [r for r in rows if r["mode"] == "auto" and r["finished"] and r["clean"][0] >= least_clean]
    most = max((r["worst_case"][0] for r in there), default=None)
    return [r["name"] for r in there if r["worst_case"][0] == most]


def chosen_of(rows: Rows, least_clean: float) -> str | None:
    """The point that the rule takes: of `tied`, the best of AutoAttack, then the cleanest; None where there is none."""
    names = tied(rows, least_clean)
    there = [r for r in rows if r["name"] in names]
    best = max(
        there, key=lambda r: (r["autoattack"]["accuracy"][0] if r["autoattack"] else 0.0, r["clean"][0]), default=None
    )
    return None if best is None else str(best["name"])


def percent(share: Sequence[float]) -> str:
    """[share, low, high] in per cent."""
    value, low, high = (100 * s for s in share)
    return f"{value:.1f} ({low:.1f}-{high:.1f})"


def markdown(document: Mapping[str, Any]) -> str:
    """The report for people."""
    setup, chosen = document["setup"], document["chosen"]
    least = f"{100 * document['least_clean']:g} %"
    lines = [f"# Operating points of {document['checkpoint']}", ""]
    if not document["done"]:
        lines += ["**The search has not ended.** The same command goes on with it.", ""]
    lines += [
        f"**Chosen: {chosen}.**" if chosen else f"**No finished point of mode auto has {least} clean accuracy.**",
        "",
    ]
    lines += [
        f"By the rule of {RULE}, with at least {least} clean. Validation images of {setup['set']}: clean accuracy of "
        f"{document['clean_images']}, worst case at {setup['eps']:g}/255 of the first {setup['images']} "
        f"({setup['steps']} steps an attack), in per cent with 95 % intervals. Points that another one beats in both "
        "were not attacked to the end: what is left of them is at most that. *Flagged of it*: of worst-case images, "
        "at each threshold as a server applies it; no attacker minded the score.",
        "",
    ]
    rows = []
    for r in sorted(document["points"], key=lambda r: -r["clean"][0]):
        worst = percent(r["worst_case"]) if r["finished"] else f"at most {100 * r['worst_case'][0]:.1f}"
        auto = r["autoattack"]
        said = f"{percent(auto['accuracy'])} of {auto['images']}" if auto else ""
        name = f"**{r['name']}**" if r["name"] == chosen else r["name"]
        alarms = [percent(r["flagged"][f]) if r["flagged"] else "" for f in FPRS]
        rows.append([name, percent(r["clean"]), worst, said, *alarms])
    if control := document["static"]:
        row = [
            f"control: {control['checkpoint']}, static",
            percent(control["clean"]),
            percent(control["worst_case"]),
            *[""] * 3,
        ]
        rows.append(row)
    lines += table(
        ["point", "clean", "worst case", "AutoAttack", *(f"flagged of it, {100 * float(f):g} %" for f in FPRS)], rows
    )
    lines += ["![Clean against worst-case accuracy, a point a setting](frontier.svg)", ""]
    lines += ["## Who broke the images of each finished point first", ""]
    for r in document["points"]:
        if r["finished"]:
            counts = sorted(r["broken_first_by"].items(), key=lambda item: -item[1])
            lines.append(f"- {r['name']}: " + ", ".join(f"{name} {n}" for name, n in counts))
    lines += [""]
    if kinds := document["false_positives"]:
        lines += _false_positives(kinds)
    return "\n".join(lines).rstrip() + "\n"


def _false_positives(kinds: Mapping[str, Mapping[str, Any]], most: int = 12) -> list[str]:
    """The kinds that are flagged most; the detector is the same at all points."""
    lines = ["## Natural images that are flagged", ""]
    lines += [
        "The score does not depend on the point. Flagged by the thresholds that a server applies to each image, at "
        f"rates of {' and '.join(f'{100 * float(f):g} %' for f in FPRS)}; of all five strengths, and of the worst one.",
        "",
    ]
    for groups in (("judging", "pictures"), ("training",)):
        if any(one["group"] in groups for one in kinds.values()):
            said = [
                f"{percent(rate)} at {100 * float(f):g} % ({name})"
                for f in FPRS
                for name, rate in [worst_kind(kinds, groups, f)]
            ]
            lines += [f"Worst kind of {' and '.join(groups)}: {', '.join(said)}.", ""]
    head = ["kind", "group", "images", *(f"{100 * float(f):g} %: mean, worst strength" for f in FPRS)]
    order = sorted(kinds, key=lambda k: -kinds[k]["mean"][FPRS[0]][0])[:most]
    order += [k for k in ("pristine",) if k not in order]
    rows = [
        [
            k,
            kinds[k]["group"],
            str(kinds[k]["images"]),
            *(f"{percent(kinds[k]['mean'][f])}, {percent(kinds[k]['worst'][f])}" for f in FPRS),
        ]
        for k in order
    ]
    return [*lines, *table(head, rows)]


def draw(document: Mapping[str, Any], out: Path) -> None:
    """out.png and out.svg: clean against worst-case accuracy, a point a setting; the modes, the control, the paper."""
    figure, axes = drawing.pyplot().subplots(figsize=(6.5, 4.5))
    temperatures = sorted({r["mixing_limit"] for r in document["points"] if "mixing_limit" in r})
    for number, limit in enumerate(temperatures):
        mine = [r for r in document["points"] if r.get("mixing_limit") == limit]
        color = f"C{number}"
        for finished, style in ((True, "o"), (False, "x")):
            some = [(100 * r["clean"][0], 100 * r["worst_case"][0]) for r in mine if r["finished"] == finished]
            if some:
                label = f"a_max {limit:g}" if finished or not any(r["finished"] for r in mine) else None
                axes.plot(*zip(*some, strict=True), style, color=color, label=label, markersize=4 if finished else 3)
        for r in mine:
            if r["finished"]:
                at = (100 * r["clean"][0], 100 * r["worst_case"][0])
                axes.annotate(
                    f"T {r['mixing_temperature']:g}", at, fontsize=6, xytext=(3, 3), textcoords="offset points"
                )
    for r in document["points"]:
        if "mixing_limit" not in r:
            x, y = r["clean"], r["worst_case"]
            axes.errorbar(
                100 * x[0],
                100 * y[0],
                yerr=[[100 * (y[0] - y[1])], [100 * (y[2] - y[0])]],
                fmt="s",
                color="0.2",
                markersize=5,
            )
            axes.annotate(r["name"], (100 * x[0], 100 * y[0]), fontsize=7, xytext=(4, -9), textcoords="offset points")
    if control := document["static"]:
        axes.plot(
            100 * control["clean"][0], 100 * control["worst_case"][0], "D", color="0.5", label="control: static network"
        )
    axes.plot(100 * PAPER[0], 100 * PAPER[1], "*", color="0.5", label="the paper (PGD-20, last iterate, test images)")
    for r in document["points"]:
        if r["name"] == document["chosen"]:
            axes.plot(
                100 * r["clean"][0],
                100 * r["worst_case"][0],
                "o",
                markersize=12,
                fillstyle="none",
                color="k",
                label="chosen",
            )
    axes.axvline(100 * document["least_clean"], color="0.8", linewidth=1)
    axes.set(xlabel="clean accuracy, per cent", ylabel="worst-case accuracy, per cent")
    axes.set_ylim(bottom=-2)
    axes.legend(fontsize="x-small", loc="upper right")
    figure.tight_layout()
    drawing.save(figure, out, dpi=100)
