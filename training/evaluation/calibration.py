"""Thresholds for the images that they speak for: domains and their ranges of pixel statistics.

An image belongs to the first domain whose ranges hold its statistics. "pristine" is what validation images look like;
its thresholds are theirs, and it keeps attacks of 8/255 inside. "stretched" is the same but for missing grey levels,
which contrast, light and gamma leave: the detector still tells attacks there, and attackers could stretch last of all.
"pool" is that and what other benign corruptions make of it; its thresholds are quantiles of the whole pool. Nothing
here reads a test image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domain.corruptions import CORRUPTIONS, STRENGTHS
from domain.ranges import REACH, Ranges, Statistics, pool_ranges, pristine_ranges
from domain.shares import wilson
from domain.statistics import STATISTICS, measure

from ..attacks.ascent import Budget, Model
from ..attacks.copies import attackers_copy
from ..attacks.pgd import pgd_sat
from ..data.images import Split, to_bytes, to_pixels
from ..networks.checkpoint import Calibration, Domain
from ..networks.network import ADVERSARIAL, DetectingNetwork
from .detection import FPRS, calibrate, histogram, threshold_at
from .pictures import changed
from .probability import PRIOR, ScoreMap, fit_score_map

OPERATING_POINTS = {"suspicious": 0.05, "adversarial": 0.01}
TRAINING_KINDS = tuple(name for name, kind in CORRUPTIONS.items() if kind.group == "training")
STRETCH = ("contrast", 3)  # the corruption after which attacked images stand for those of the stretched domain
STRETCHING = ("contrast", "gamma", "saturation", "autocontrast")  # kinds that leave gaps
LEAST_OF_A_KIND = 30  # images of a kind and strength in a domain that say how much of it is flagged there
LEAST_IMAGES = 200  # that a domain between pristine and pool is calibrated on; with fewer there is none


def statistics_of(images: Tensor) -> Statistics:
    """Of uint8 images [N,3,H,W], one row an image."""
    rows = [list(measure(image).values()) for image in images.cpu().numpy()]
    return np.array(rows, np.float64).reshape(len(rows), len(STATISTICS))


def inside(statistics: Statistics, ranges: Mapping[str, tuple[float, float]]) -> NDArray[np.bool_]:
    """[N]: whether each image lies in the ranges, both ends included."""
    held = np.ones(len(statistics), bool)
    for name, (low, high) in ranges.items():
        column = statistics[:, STATISTICS.index(name)]
        held &= (low <= column) & (column <= high)
    return held


def scores_of(net: DetectingNetwork, images: Tensor, size: int = 500) -> Tensor:
    """P_type[:, ADVERSARIAL] of uint8 images, float32 [N] on the CPU; the network must be in evaluation mode."""
    device = next(net.parameters()).device
    with torch.inference_mode():
        parts = [net.detect(to_pixels(part.to(device))).p_type[:, ADVERSARIAL] for part in images.split(size)]
        return torch.cat(parts).float().cpu()


def attacked(model: Model, split: Split, eps: float, steps: int, size: int = 250) -> Tensor:
    """8-bit images of PGD_sat against `model` at eps/255, uint8 [N,3,H,W]; the global generator is left as it was."""
    budget = Budget(eps / 255, max(1.0, eps / 4) / 255, steps)
    device = split.images.device
    parts = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for images, labels in zip(split.images.split(size), split.labels.split(size), strict=True):
            parts.append(to_bytes(pgd_sat(model, to_pixels(images), labels, budget)))
    return torch.cat(parts).contiguous()


def pool_of(images: Tensor, kinds: Sequence[str], per_kind: int) -> dict[tuple[str, int], Tensor]:
    """(kind, strength) -> images: `per_kind` of each kind, in equal parts of all strengths.

    Kinds get other images, one after the other. Where there are fewer images than that, each kind has all of them once.
    """
    images = images.cpu()
    n = min(per_kind, len(images))
    out = {}
    for number, name in enumerate(kinds):
        chosen = images[(torch.arange(n) + number * n) % len(images)]
        for strength, part in zip(STRENGTHS, chosen.tensor_split(len(STRENGTHS)), strict=True):
            if len(part):
                out[name, strength] = changed(part, name, strength)
    return out


def stretched_ranges(pristine: Ranges, pool: Ranges, stretching: Sample) -> Ranges:
    """Ranges of pristine images, but for gaps, and for the jumps of histograms that go with them.

    A histogram whose levels a factor of 1.25 spreads has jumps of 1, at 1.5 of 2, at 1.65 of 2.5; at 2 it has 4 as
    posterised ones have, which are left to the pool. So are images with fewer colours than all but a fiftieth of the
    stretched ones: palettes leave gaps too.
    """
    colours = stretching.statistics[:, STATISTICS.index("colours")]
    return {
        **pristine,
        "gaps": (0.0, max(pristine["gaps"][1], pool["gaps"][1])),
        "jumps": (0.0, max(pristine["jumps"][1], 2.5)),
        "colours": (max(pristine["colours"][0], float(np.quantile(colours, 0.02))), REACH["colours"]),
    }


def flagged_at(scores: Tensor, thresholds: Mapping[float, float]) -> dict[str, list[float]]:
    """Verdict -> share of scores [N] over its threshold, with Wilson's interval."""
    return {name: wilson(int((scores > thresholds[fpr]).sum()), len(scores)) for name, fpr in OPERATING_POINTS.items()}


def assigned(statistics: Statistics, domains: Sequence[Domain]) -> NDArray[np.int64]:
    """[N]: which domain each image belongs to, -1 where none holds it."""
    held = np.stack([inside(statistics, domain.ranges) for domain in domains])
    return np.where(held.any(0), held.argmax(0), -1)


@dataclass(frozen=True)
class Sample:
    """Scores [N] of some images and their statistics, a row an image."""

    scores: Tensor
    statistics: Statistics

    @classmethod
    def of(cls, net: DetectingNetwork, images: Tensor) -> Sample:
        return cls(scores_of(net, images), statistics_of(images))

    def __getitem__(self, chosen: slice | NDArray[np.bool_]) -> Sample:
        index = chosen if isinstance(chosen, slice) else torch.from_numpy(chosen)
        return Sample(self.scores[index], self.statistics[chosen])


def joined(samples: Sequence[Sample]) -> Sample:
    return Sample(torch.cat([s.scores for s in samples]), np.concatenate([s.statistics for s in samples]))


def calibrate_domains(
    net: DetectingNetwork,
    split: Split,
    hostile: Sequence[Tensor] = (),
    *,
    per_kind: int = 1000,
) -> Calibration:
    """The calibration of a network on validation images: `detection.calibrate`, and the domains.

    Its cost beside `detection.calibrate` is one pass over 17 `per_kind` images, and an attack where none is given.

    Args:
        split: validation images, uint8.
        hostile: images attacked at 8/255, uint8, a tensor an attack; by default T2, PGD of ten steps on the network
            itself. Score maps are fitted with equal parts of each; the ranges hold them and random corners of the
            ball.
        per_kind: images of each training kind in the pool; pristine images count as one kind more. Half as many are
            attacked, and moved to corners.

    Raises:
        ValueError: no images.
    """
    was_training = net.training
    base = calibrate(net, split.images.split(500))
    net.eval()
    pristine = Sample.of(net, split.images)
    kinds = {key: Sample.of(net, images) for key, images in pool_of(split.images, TRAINING_KINDS, per_kind).items()}
    pool = joined([pristine[:per_kind], *kinds.values()])
    victims = split.head(max(1, per_kind // 2))
    if not hostile:
        there = Split(*(t.to(next(net.parameters()).device) for t in (victims.images, victims.labels)))
        hostile = [attacked(attackers_copy(net, "T2"), there, 8, 10)]
    attacks = [Sample.of(net, images) for images in hostile]
    after = [Sample.of(net, changed(images, *STRETCH)).scores for images in hostile]
    corners = statistics_of(changed(victims.images, "sign_noise", 4))  # +-8 levels
    net.train(was_training)

    ball = [corners, *(sample.statistics for sample in attacks)]
    ranges, wide = pristine_ranges(pristine.statistics, ball), pool_ranges(pool.statistics, ball)
    stretched = stretched_ranges(ranges, wide, joined([s for (name, _), s in kinds.items() if name in STRETCHING]))
    held = inside(pool.statistics, ranges)
    between = pool[inside(pool.statistics, stretched) & ~held]
    first = pristine[inside(pristine.statistics, ranges)]
    scores = [sample.scores for sample in attacks]
    domains = [
        _domain(
            "pristine",
            "images as validation images are: their colours, grey levels and fine detail",
            ["pristine"],
            ranges,
            first.scores,
            fit_score_map(first.scores, scores),
        )
    ]
    if len(between.scores) >= LEAST_IMAGES:
        domains.append(
            _domain(
                "stretched",
                "the same with grey levels missing: contrast, light or gamma changed",
                [name for name in TRAINING_KINDS if name in STRETCHING],
                stretched,
                between.scores,
                fit_score_map(between.scores, after),
            )
        )
    rest = pool[assigned(pool.statistics, domains) < 0]
    domains.append(
        _domain(
            "pool",
            "images that programs changed otherwise: few colours, smoothed, sharpened, noisy",
            ["pristine", *TRAINING_KINDS],
            wide,
            pool.scores,
            fit_score_map(rest.scores if len(rest.scores) else pool.scores, scores),
        )
    )
    rates = [rates_of(i, domains, pristine, kinds, {}) for i in range(len(domains))]
    return replace(base, domains=[replace(d, rates=r) for d, r in zip(domains, rates, strict=True)])


def _domain(name: str, about: str, kinds: list[str], ranges: Ranges, scores: Tensor, fitted: ScoreMap) -> Domain:
    edges, counts = histogram(scores)
    return Domain(
        name=name,
        about=about,
        kinds=kinds,
        images=len(scores),
        ranges=ranges,
        thresholds={fpr: threshold_at(scores, fpr) for fpr in FPRS},
        histogram_edges=edges,
        histogram_counts=counts,
        map_scores=fitted.scores,
        map_probabilities=fitted.probabilities,
        map_prior=PRIOR,
    )


def rates_of(
    number: int,
    domains: Sequence[Domain],
    pristine: Sample,
    kinds: Mapping[tuple[str, int], Sample],
    t0: Mapping[str, Tensor],
    least: int = LEAST_OF_A_KIND,
) -> dict[str, object]:
    """Rates at the thresholds of one domain, as the contract has them.

    * fpr_pristine: of all pristine images. tpr_t0: of these T0 images, by eps in 255ths.
    * fpr_worst: of the kind and strength that are flagged most among those with at least `least` images in the domain.
    """
    thresholds = domains[number].thresholds
    rates: dict[str, object] = {"fpr_pristine": flagged_at(pristine.scores, thresholds)}
    here = {key: sample[assigned(sample.statistics, domains) == number] for key, sample in kinds.items()}
    found = {key: flagged_at(s.scores, thresholds) for key, s in here.items() if len(s.scores) >= least}
    if found:
        (kind, strength), points = max(found.items(), key=lambda item: item[1]["suspicious"][0])
        rates["fpr_worst"] = {"kind": kind, "strength": strength, **points}
    if t0:
        rates["tpr_t0"] = {eps: flagged_at(scores, thresholds) for eps, scores in t0.items()}
    return rates
