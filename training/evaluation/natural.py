"""False positives: how often a server flags natural images that somebody changed, but nobody attacked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from domain.corruptions import CORRUPTIONS, STRENGTHS
from domain.shares import wilson

from ..networks.checkpoint import Calibration
from ..networks.network import DetectingNetwork
from .calibration import Sample, assigned
from .pictures import PICTURES, changed


def flagged_as_served(sample: Sample, calibration: Calibration) -> dict[float, Tensor]:
    """False-positive rate -> bool [N]: over the threshold of the first domain that holds the image, or the last one's.

    Without domains, over the thresholds of pristine images.
    """
    if not calibration.domains:
        return {fpr: sample.scores > threshold for fpr, threshold in calibration.thresholds.items()}
    which = torch.from_numpy(assigned(sample.statistics, calibration.domains))  # -1, in none, is the last one
    limits = {f: torch.tensor([d.thresholds[f] for d in calibration.domains]) for f in calibration.thresholds}
    return {fpr: sample.scores > limit[which] for fpr, limit in limits.items()}


def false_positives(
    net: DetectingNetwork, calibration: Calibration, images: Tensor, data_dir: Path, per_strength: int
) -> dict[str, dict[str, Any]]:
    """Kind -> {group, images, mean, worst}, the kinds being pristine images, every corruption, and `PICTURES`.

    `mean` and `worst` are rate -> [share, low, high] with Wilson's interval: over all strengths together, and of the
    strength that is flagged most, which `worst_strength` names. Groups are "pristine", "training", "judging" and
    "pictures". A set that is not in `data_dir` is left out.

    Args:
        images: pristine validation images, uint8 [N,3,H,W]; each strength of a kind gets the next `per_strength`.
    """
    found = {"pristine": row("pristine", {0: flagged_as_served(Sample.of(net, images), calibration)})}
    for name, kind in tqdm(CORRUPTIONS.items(), desc="false positives", leave=False, disable=None):
        strengths = {}
        for i, strength in enumerate(STRENGTHS):
            some = changed(images.roll(-i * per_strength, 0)[:per_strength], name, strength, seed=1)
            strengths[strength] = flagged_as_served(Sample.of(net, some), calibration)
        found[name] = row(kind.group, strengths)
    for name, (_, load) in PICTURES.items():
        try:
            some = load(data_dir, 5 * per_strength, images.shape[-1])
        except FileNotFoundError:
            continue
        found[name] = row("pictures", {0: flagged_as_served(Sample.of(net, some), calibration)})
    return found


def row(group: str, strengths: Mapping[int, Mapping[float, Tensor]]) -> dict[str, Any]:
    """One kind of `false_positives`, from strength -> rate -> bool [n]."""
    rates = list(next(iter(strengths.values())))
    together = {f: torch.cat([flags[f] for flags in strengths.values()]) for f in rates}
    most = max(strengths, key=lambda s: [float(strengths[s][f].double().mean()) for f in sorted(rates)])
    return {
        "group": group,
        "images": len(together[rates[0]]),
        "mean": {str(f): share(flags) for f, flags in together.items()},
        "worst": {str(f): share(strengths[most][f]) for f in rates},
        "worst_strength": most,
    }


def share(flags: Tensor) -> list[float]:
    """[share, low, high] of bool [n], see `shares.wilson`."""
    return wilson(int(flags.sum()), len(flags))


def worst_kind(kinds: Mapping[str, Mapping[str, Any]], groups: tuple[str, ...], fpr: str) -> tuple[str, list[float]]:
    """The kind of these groups whose mean at a rate is the largest, and that mean with its interval."""
    name = max((k for k, one in kinds.items() if one["group"] in groups), key=lambda k: float(kinds[k]["mean"][fpr][0]))
    return name, kinds[name]["mean"][fpr]
