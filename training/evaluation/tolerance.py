"""Adversarial thresholds that honest images hardly reach: which share of a training kind each domain tolerates.

Thresholds that are quantiles of pristine images lie under all noise. `tolerant` raises them; `chosen` says how far: no
*judging* kind of images, at no strength, has more than `MOST_FLAGGED` of them over the threshold that a server applies,
and under that the larger share is the better one, since what is flagged of T0 only grows with it. Judging kinds choose
among a few shares here and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from domain.corruptions import CORRUPTIONS
from domain.shares import wilson

from ..networks.checkpoint import Domain
from .calibration import LEAST_OF_A_KIND, OPERATING_POINTS, Sample, assigned
from .detection import threshold_at

MOST_FLAGGED = 0.1  # of a judging kind of natural images, over the adversarial threshold
Kinds = Mapping[tuple[str, int], Sample]  # (kind, strength), strength 0 where there is none


def tolerant(
    domains: Sequence[Domain], kinds: Kinds, tolerated: Sequence[float], least: int = LEAST_OF_A_KIND
) -> list[Domain]:
    """The domains with "adversarial" thresholds that hardly any honest image is over, whatever kind it is of.

    Where more than a domain's share of the images of one of `kinds`, at one strength, lies over the threshold of the
    domain that they belong to, it is raised until no more does. Kinds with fewer than `least` images in a domain say
    nothing there. What an attack scores does not count: a detector that takes noise for attacks ends where its verdict
    is hardly ever "adversarial", and "suspicious" is all that it says.

    Args:
        tolerated: a share for each domain; 1 leaves its threshold as it is.
    """
    fpr, raised = OPERATING_POINTS["adversarial"], []
    for number, (domain, share) in enumerate(zip(domains, tolerated, strict=True)):
        here = [
            sample.scores[torch.from_numpy(assigned(sample.statistics, domains) == number)] for sample in kinds.values()
        ]
        ends = [threshold_at(scores, share) for scores in here if len(scores) >= least] if share < 1 else []
        threshold = max(domain.thresholds[fpr], *ends) if ends else domain.thresholds[fpr]
        raised.append(replace(domain, thresholds=domain.thresholds | {fpr: threshold}))
    return raised


def chosen(domains: Sequence[Domain], training: Kinds, judging: Kinds, shares: Sequence[float]) -> list[float]:
    """The share of each domain by the rule above, or the smallest of `shares` where none is small enough.

    Domain by domain in the order in which images are tried on them, the later ones as strict as can be meanwhile.
    """
    found = [min(shares)] * len(domains)
    for number in range(len(domains)):
        for share in sorted(shares, reverse=True):
            tried = [*found[:number], share, *found[number + 1 :]]
            if most_flagged(judging, tolerant(domains, training, tried))["adversarial"][0] <= MOST_FLAGGED:
                found = tried
                break
    return found


def served(sample: Sample, domains: Sequence[Domain]) -> dict[str, list[float]]:
    """Verdict -> share of a sample over the thresholds of the domains that hold its images, with Wilson's interval."""
    where, found = assigned(sample.statistics, domains), {}  # -1, in none, is the last one
    for verdict, fpr in OPERATING_POINTS.items():
        limits = np.array([domain.thresholds[fpr] for domain in domains])[where]
        found[verdict] = wilson(int((sample.scores.double().numpy() > limits).sum()), len(where))
    return found


def most_flagged(kinds: Kinds, domains: Sequence[Domain]) -> dict[str, Any]:
    """The kind and strength with the largest share over the adversarial thresholds, and its shares over both."""
    found = {key: served(sample, domains) for key, sample in kinds.items()}
    (kind, strength), points = max(found.items(), key=lambda item: item[1]["adversarial"][0])
    return {"kind": kind, "strength": strength, **points}


def of_group(natural: Kinds, group: str) -> dict[tuple[str, int], Sample]:
    """Kinds of one group; pictures from elsewhere are judging kinds, and pristine images are of none."""
    return {
        (name, strength): sample
        for (name, strength), sample in natural.items()
        if name != "pristine" and (CORRUPTIONS[name].group if name in CORRUPTIONS else "judging") == group
    }


def compared(
    domains: Sequence[Domain],
    natural: Kinds,
    hostile: Mapping[str, Sample],
    shares: Sequence[float],
    taken: Sequence[float],
) -> list[dict[str, Any]]:
    """A row for each share, tolerated in all domains alike, and one for the shares that were taken, the last."""
    training, judging = (of_group(natural, group) for group in ("training", "judging"))
    rows = []
    for tolerated in [*([share] * len(domains) for share in sorted(shares)), list(taken)]:
        raised = tolerant(domains, training, tolerated)
        rows.append(
            {
                "tolerated": tolerated,
                "thresholds": [domain.thresholds[OPERATING_POINTS["adversarial"]] for domain in raised],
                "pristine": served(natural["pristine", 0], raised),
                "training": most_flagged(training, raised),
                "judging": most_flagged(judging, raised),
                "t0": {n: served(s, raised) for n, s in hostile.items() if n.startswith("T0") and "then" not in n},
            }
        )
    return rows
