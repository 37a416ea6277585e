"""The audit's pictures, drawn from audit.json alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core import drawing
from .card import FPR
from .linter import radius
from .measures import REACH, log_odds

Parts = Mapping[str, Any]


def draw(document: Mapping[str, Any], folder: Path) -> list[str]:
    """Every picture that the finished parts allow, as FOLDER/NAME.png and .svg; returns their names."""
    drawn = []
    for name, paint in PICTURES.items():
        figure, axes = drawing.pyplot().subplots(figsize=(6.5, 4))
        if paint(axes, document["parts"], document):
            figure.tight_layout()
            drawing.save(figure, folder / name, dpi=90)
            drawn.append(name)
        else:
            drawing.pyplot().close(figure)
    return drawn


def _by_radius(axes: Any, parts: Parts, _document: Mapping[str, Any]) -> bool:
    """Shares against eps, where the clean image is radius 0."""
    curves: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "worst_case": lambda p: p["accuracy"],
        "T3": lambda p: 1 - p["sr_at"][FPR],
    }
    titles = {"worst_case": "right, worst case of T1 and T2", "T3": "right or flagged, T3"}
    any_curve = False
    for what, value in curves.items():
        points = [(radius(n), value(p)) for n, p in parts.items() if n.rpartition("@")[0] == what]
        if points and "clean" in parts and what == "worst_case":
            points.append((0.0, parts["clean"]["accuracy"]))
        if points:
            any_curve = True
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=titles[what])
    axes.set(xlabel="radius (1/255)", ylabel="share of images", ylim=(0, 1))
    axes.set_xscale("symlog", linthresh=2)
    axes.set_xticks([0, 2, 4, 8, 16, 64], [0, 2, 4, 8, 16, 64])
    if any_curve:
        axes.legend(fontsize="small")
    return any_curve


def _roc(axes: Any, parts: Parts, _document: Mapping[str, Any]) -> bool:
    chosen = {n: p["roc"] for n, p in parts.items() if n.endswith("@8") and ":" not in n and "roc" in p}
    shown = {n: c for n, c in chosen.items() if n.startswith(("T0/", "T3", "worst_case", "T2/autoattack"))}
    for name, (fpr, tpr) in shown.items():
        axes.plot(fpr, tpr, label=name.removesuffix("@8").replace("/pgd_sat", ""))
    axes.axvline(0.05, color="0.7", linewidth=1)
    axes.set(xlabel="natural images flagged", ylabel="attacked images flagged", xlim=(1e-3, 1), ylim=(0, 1.01))
    axes.set_xscale("log")
    if shown:
        axes.legend(loc="lower right")
    return bool(shown)


def _scores(axes: Any, parts: Parts, document: Mapping[str, Any]) -> bool:
    names = {"clean": "natural", "worst_case@8": "worst case of T1 and T2", "T3@8": "T3"}
    first = next((n for n in parts if n.startswith("T0/") and n.endswith("@8")), None)
    names |= {first: first.split("/")[1] + " (T0)"} if first else {}
    shown = {title: parts[n]["histogram"] for n, title in names.items() if "histogram" in parts.get(n, {})}
    for title, counts in shown.items():
        width = 2 * REACH / len(counts)
        axes.stairs([c / sum(counts) for c in counts], [i * width - REACH for i in range(len(counts) + 1)], label=title)
    if FPR in document["setup"]["thresholds"]:
        axes.axvline(log_odds(document["setup"]["thresholds"][FPR]), color="0.5", linewidth=1)
    axes.set(xlabel="log-odds of the score", ylabel="share of images", xlim=(-REACH, REACH))
    axes.set_yscale("log")
    if shown:
        axes.legend(fontsize="small")
    return bool(shown)


def _risk_coverage(axes: Any, parts: Parts, _document: Mapping[str, Any]) -> bool:
    names = {"clean": "natural", "worst_case@8": "worst case of T1 and T2", "T3@8": "T3"}
    names |= {f"max_softmax:{n}": f"{title}, max-softmax control" for n, title in names.items()}
    shown = {title: parts[n]["risk_coverage"] for n, title in names.items() if "risk_coverage" in parts.get(n, {})}
    for title, (coverage, risk) in shown.items():
        axes.plot(coverage, risk, "--" if "control" in title else "-", label=title)
    axes.set(xlabel="share accepted", ylabel="wrong among them", xlim=(0, 1), ylim=(0, 1.01))
    if shown:
        axes.legend(fontsize="small")
    return bool(shown)


def _corruptions(axes: Any, parts: Parts, _document: Mapping[str, Any]) -> bool:
    """Kinds as rows, strengths as columns where there are any."""
    rates: dict[str, dict[int, float]] = {}
    for name, part in parts.items():
        if name.startswith("corruptions/") and FPR in part.get("fpr", {}):
            _, kind, strength = name.split("/")
            rates.setdefault(kind, {})[int(strength)] = part["fpr"][FPR]
    if not rates:
        return False
    kinds = sorted(rates, key=lambda k: max(rates[k].values()))
    strengths = sorted({s for row in rates.values() for s in row})
    grid = [[rates[k].get(s, math.nan) for s in strengths] for k in kinds]
    axes.figure.set_size_inches(6.5, 1.5 + 0.22 * len(kinds))
    image = axes.imshow(grid, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    axes.set(yticks=range(len(kinds)), xticks=range(len(strengths)), xlabel="strength")
    axes.set_yticklabels(kinds)
    axes.set_xticklabels(strengths)
    axes.figure.colorbar(image, label="flagged at the 5 % threshold")
    return True


def _reliability(axes: Any, parts: Parts, _document: Mapping[str, Any]) -> bool:
    shown = {n.partition("/")[2]: p["bins"] for n, p in parts.items() if n.startswith("reliability/")}
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for title, (said, was, _) in shown.items():
        axes.plot(said, was, marker="o", label=title)
    axes.set(xlabel="P(attacked) as the score says", ylabel="share that was attacked", xlim=(0, 1), ylim=(0, 1.01))
    if shown:
        axes.legend(fontsize="small")
    return bool(shown)


PICTURES: dict[str, Callable[[Any, Parts, Mapping[str, Any]], bool]] = {
    "worst_case": _by_radius,
    "roc": _roc,
    "scores": _scores,
    "risk_coverage": _risk_coverage,
    "corruptions": _corruptions,
    "reliability": _reliability,
}
