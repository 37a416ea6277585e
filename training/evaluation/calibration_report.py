"""What the report of a calibration says of each group of images; nothing here asks a network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domain.corruptions import CORRUPTIONS
from domain.statistics import STATISTICS, measure

from ..networks.checkpoint import Domain
from .calibration import Sample, assigned, flagged_at, inside
from .pictures import PICTURES
from .tolerance import served

MIDDLE = 3  # the strength that is measured on most images


def described(domain: Domain) -> dict[str, Any]:
    """A domain in the report: all but histogram and map, which the checkpoint carries."""
    return {
        "name": domain.name,
        "about": domain.about,
        "images": domain.images,
        "kinds": domain.kinds,
        "ranges": {name: list(ends) for name, ends in domain.ranges.items()},
        "thresholds": {str(f): t for f, t in domain.thresholds.items()},
        "rates": domain.rates,
    }


def row(sample: Sample, domains: Sequence[Domain], before: Mapping[float, float]) -> dict[str, Any]:
    """How a group of images was flagged, how it is now, and in which domains it lies."""
    where = torch.from_numpy(assigned(sample.statistics, domains))
    shares = {domain.name: float((where == i).double().mean()) for i, domain in enumerate(domains)}
    return {
        "images": len(where),
        "in": {**shares, "none": float((where < 0).double().mean())},
        "flagged_before": flagged_at(sample.scores, before),
        "flagged": served(sample, domains),
    }


def rows(
    name: str, natural: Mapping[tuple[str, int], Sample], domains: Sequence[Domain], before: Mapping[float, float]
) -> dict[str, Any]:
    """One kind of natural images at each of its strengths."""
    kind = CORRUPTIONS.get(name)
    title = "as they are" if name == "pristine" else kind.title if kind else PICTURES[name][0]
    return {
        "title": title,
        "group": "calibration" if name == "pristine" else kind.group if kind else "judging",
        "strengths": {str(s): row(sample, domains, before) for (n, s), sample in natural.items() if n == name},
    }


def left_by(
    number: int, natural: Mapping[tuple[str, int], Sample], hostile: Mapping[str, Sample], pristine: Domain
) -> dict[str, Any]:
    """What one statistic alone leaves out of the pristine domain, beside its quantiles on pristine images."""
    ranges = {STATISTICS[number]: pristine.ranges[STATISTICS[number]]}

    def share(sample: Sample) -> float:
        return float(1 - inside(sample.statistics, ranges).mean())

    column = natural["pristine", 0].statistics[:, number]
    return {
        "quantiles": {str(q): float(np.quantile(column, q)) for q in (0.002, 0.05, 0.5, 0.95, 0.998)},
        "range": list(ranges[STATISTICS[number]]),
        "left": {f"{name} {strength}": share(s) for (name, strength), s in natural.items()},
        "left_attacked": {name: share(s) for name, s in hostile.items()},
    }


def microseconds(images: Tensor, n: int = 300) -> float:
    """Median time that `measure` takes for one image."""
    taken = []
    for image in images[:n].cpu().numpy():
        start = time.perf_counter()
        measure(image)
        taken.append(time.perf_counter() - start)
    return round(1e6 * float(np.median(taken)), 1)


def table(report: Mapping[str, Any]) -> str:
    """Markdown: each kind at its middle strength, flagged at 5 % and 1 % before and now, and where it lies."""
    names = [domain["name"] for domain in report["domains"]]
    places = " | ".join([*(f"in {name}" for name in names), "in none"])
    lines = [
        f"| images | group | flagged before, 5 % / 1 % | flagged now, 5 % / 1 % | {places} |",
        f"|---|---|---|---|{'---|' * (len(names) + 1)}",
    ]

    def line(name: str, group: str, part: Mapping[str, Any]) -> str:
        def pair(key: str) -> str:
            points = part[key]
            return f"{100 * points['suspicious'][0]:.1f} / {100 * points['adversarial'][0]:.1f}"

        lies = " | ".join(f"{100 * share:.0f}" for share in part["in"].values())
        return f"| {name} | {group} | {pair('flagged_before')} | {pair('flagged')} | {lies} |"

    for name, kind in report["natural"].items():
        part = kind["strengths"].get(str(MIDDLE)) or kind["strengths"]["0"]
        lines.append(line(name, kind["group"], part))
    lines += [line(name, "attack", part) for name, part in report["attacked"].items()]
    return "\n".join(lines)


def tolerance_table(report: Mapping[str, Any]) -> str:
    """Markdown: what it costs that training kinds have a share over the adversarial thresholds; the last is taken."""
    rows = report["tolerances"]
    attacks = list(rows[0]["t0"])
    head = ["tolerated", "thresholds", "pristine", "worst training kind", "worst judging kind", *attacks]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]

    def worst(part: Mapping[str, Any]) -> str:
        return f"{_over(part)} ({part['kind']} {part['strength']})"

    for row in rows:
        same = len(set(row["tolerated"])) == 1
        tolerated = [f"{100 * share:g}" for share in (row["tolerated"][:1] if same else row["tolerated"])]
        cells = [", ".join(tolerated), ", ".join(f"{t:.3f}" for t in row["thresholds"]), _over(row["pristine"])]
        cells += [worst(row[group]) for group in ("training", "judging")]
        lines.append(f"| {' | '.join([*cells, *(_over(row['t0'][name]) for name in attacks)])} |")
    names = ", ".join(domain["name"] for domain in report["domains"])
    return "\n".join(
        [
            f"Per cent over the upper / lower thresholds, as served. *Tolerated* and *thresholds*: of {names}. The "
            "last row is what was taken.",
            "",
            *lines,
        ]
    )


def _over(part: Mapping[str, Any]) -> str:
    return f"{100 * part['adversarial'][0]:.1f} / {100 * part['suspicious'][0]:.1f}"
