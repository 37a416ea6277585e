"""Domains: the kinds of images that a pair of thresholds was calibrated on, and the one that an image lies in.

A contract lists its domains from the narrowest to the widest. An image lies in the first one whose ranges hold all of
its statistics (`domain.statistics`). Where it lies in none, or its file can only hold a few colours, it is
uncalibrated: the thresholds of the last domain are applied, and they do not speak for it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from domain.statistics import STATISTICS, outside

from . import fields
from .images import Traits

RATE_POINTS = ("suspicious", "adversarial")


@dataclass(frozen=True)
class Threshold:
    """Scores above `score` are flagged; `fpr` is the share of the domain's unattacked validation images that were."""

    score: float
    fpr: float


@dataclass(frozen=True)
class Thresholds:
    """The two operating points of the detector."""

    suspicious: Threshold
    adversarial: Threshold


@dataclass(frozen=True)
class Histogram:
    """Scores of a domain's unattacked validation images: rising edges, one more than counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ScoreMap:
    """A monotone map of scores to P(attacked) where a share `prior` of all images is attacked; linear in between."""

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    prior: float

    def probability(self, score: float, prior: float) -> float:
        """P(attacked) of an image with this score where a share `prior`, in (0, 1), of all images is attacked.

        The likelihood ratio of the score is what the map knows, so odds change with the prior's odds (Bayes' rule):
        odds(p') = odds(p) odds(prior) / odds(self.prior).
        """
        p = self._at(score)
        if p in (0.0, 1.0):  # certain at any prior
            return p
        # Ratios never underflow to 0 / 0, as products of the smallest priors do.
        return 1 / (1 + (1 - p) / p * ((1 - prior) / prior) * (self.prior / (1 - self.prior)))

    def _at(self, score: float) -> float:
        scores, probabilities = self.scores, self.probabilities
        after = bisect_right(scores, score)
        if after == 0:
            return probabilities[0]
        if after == len(scores):
            return probabilities[-1]
        left, right = scores[after - 1], scores[after]
        low, high = probabilities[after - 1], probabilities[after]
        return low + (high - low) * (score - left) / (right - left)


@dataclass(frozen=True)
class Domain:
    """One kind of images and what was calibrated on it.

    Attributes:
        about: one line for people.
        ranges: statistic -> (least, largest) of its images. None in contracts of schema 1, which know images only by
            their files: neither resized nor stored with loss.
        images: validation images that it was calibrated on, unattacked.
        kinds: what was done to them; "pristine" is nothing.
        histogram: of their scores.
        score_map: None in contracts of schema 1.
        rates: measured rates with their intervals, [value, low, high] at each operating point, as JSON: `fpr_pristine`,
            `fpr_worst` (of the worst `kind` at its `strength`) and `tpr_t0` (by eps in 255ths), as far as they were
            measured.
    """

    name: str
    about: str
    ranges: Mapping[str, tuple[float, float]] | None
    thresholds: Thresholds
    images: int
    kinds: tuple[str, ...]
    histogram: Histogram
    score_map: ScoreMap | None = None
    rates: Mapping[str, Any] = field(default_factory=dict)

    def excludes(self, traits: Traits) -> str | None:
        """Why an image lies outside; None where it lies inside."""
        if self.ranges is None:
            return traits.altered
        return outside(traits.statistics, self.ranges)


def locate(domains: Sequence[Domain], traits: Traits) -> tuple[Domain, str | None]:
    """The domain whose thresholds are applied to an image, and why they do not speak for it: None where they do."""
    why: str | None = traits.unusual
    if why is None:
        for domain in domains:
            why = domain.excludes(traits)
            if why is None:
                return domain, None
    return domains[-1], why


# Reading.


def read_domains(parts: Sequence[Any]) -> tuple[Domain, ...]:
    """The `domains` of schema 2. Raises ContractError."""
    domains = tuple(_domain(part) for part in parts)
    if not domains:
        fields.refuse("domains", "is empty")
    if len({domain.name for domain in domains}) < len(domains):
        fields.refuse("domains", "names one twice")
    # One CUSUM a threshold watches the images of all domains.
    if len({(d.thresholds.suspicious.fpr, d.thresholds.adversarial.fpr) for d in domains}) > 1:
        fields.refuse("domains", "differ in the false-positive rates of their thresholds")
    return domains


def _domain(raw: Any) -> Domain:
    part = fields.mapping(raw, "domains")
    name = fields.text(part.get("name"), "domains.name")
    where = f"domains.{name}"
    return Domain(
        name,
        fields.text(part.get("about"), f"{where}.about"),
        _ranges(fields.mapping(part.get("ranges"), f"{where}.ranges"), f"{where}.ranges"),
        read_thresholds(fields.mapping(part.get("thresholds"), f"{where}.thresholds"), f"{where}.thresholds"),
        fields.integer(part, "images", where, least=1),
        tuple(fields.text(kind, f"{where}.kinds") for kind in fields.sequence(part, "kinds", where)),
        read_histogram(part.get("score_histogram"), f"{where}.score_histogram"),
        _score_map(fields.mapping(part.get("score_map"), f"{where}.score_map"), f"{where}.score_map"),
        _rates(fields.mapping(part.get("rates"), f"{where}.rates"), f"{where}.rates"),
    )


def read_thresholds(part: dict[str, Any], where: str) -> Thresholds:
    """Both thresholds, in their order. Raises ContractError."""
    found = []
    for name in RATE_POINTS:
        point = fields.mapping(part.get(name), f"{where}.{name}")
        score = fields.share(point.get("score"), f"{where}.{name}.score")
        fpr = fields.number(point, "fpr", f"{where}.{name}")
        if not 0 < fpr < 1:
            fields.refuse(f"{where}.{name}.fpr", f"is {fpr!r}, not in (0, 1)")
        found.append(Threshold(score, fpr))
    suspicious, adversarial = found
    if suspicious.score > adversarial.score or suspicious.fpr < adversarial.fpr:
        fields.refuse(where, "'adversarial' must be the stricter of the two")
    return Thresholds(suspicious, adversarial)


def read_histogram(raw: Any, where: str) -> Histogram:
    """Raises ContractError."""
    part = fields.mapping(raw, where)
    edges = tuple(float(fields.finite(edge, f"{where}.edges")) for edge in fields.sequence(part, "edges", where))
    counts = tuple(int(fields.finite(count, f"{where}.counts")) for count in fields.sequence(part, "counts", where))
    if len(edges) != len(counts) + 1 or list(edges) != sorted(edges) or min(counts, default=0) < 0:
        fields.refuse(where, "needs rising edges, one more than counts")
    return Histogram(edges, counts)


def _ranges(part: dict[str, Any], where: str) -> dict[str, tuple[float, float]]:
    found = {}
    for name, raw in part.items():
        if name not in STATISTICS:
            fields.refuse(f"{where}.{name}", f"is not measured here; there are {', '.join(STATISTICS)}")
        if not isinstance(raw, list) or len(raw) != 2:
            fields.refuse(f"{where}.{name}", "is not [least, largest]")
        low, high = (float(fields.finite(end, f"{where}.{name}")) for end in raw)
        if low > high:
            fields.refuse(f"{where}.{name}", "ends before it begins")
        found[name] = (low, high)
    return found


def _score_map(part: dict[str, Any], where: str) -> ScoreMap:
    scores = tuple(fields.share(score, f"{where}.scores") for score in fields.sequence(part, "scores", where))
    probabilities = tuple(
        fields.share(p, f"{where}.probabilities") for p in fields.sequence(part, "probabilities", where)
    )
    prior = fields.number(part, "prior", where)
    if not scores or len(scores) != len(probabilities):
        fields.refuse(where, "needs as many probabilities as scores, and one at least")
    if any(left >= right for left, right in pairwise(scores)):
        fields.refuse(f"{where}.scores", "do not rise")
    if any(low > high for low, high in pairwise(probabilities)):
        fields.refuse(f"{where}.probabilities", "fall: a higher score must not mean a lower probability")
    if not 0 < prior < 1:
        fields.refuse(f"{where}.prior", f"is {prior!r}, not in (0, 1)")
    return ScoreMap(scores, probabilities, prior)


def _rates(part: dict[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "fpr_pristine" in part:
        found["fpr_pristine"] = _points(part["fpr_pristine"], f"{where}.fpr_pristine")
    if "fpr_worst" in part:
        worst = fields.mapping(part["fpr_worst"], f"{where}.fpr_worst")
        found["fpr_worst"] = {
            "kind": fields.text(worst.get("kind"), f"{where}.fpr_worst.kind"),
            "strength": fields.integer(worst, "strength", f"{where}.fpr_worst", least=1),
            **_points(worst, f"{where}.fpr_worst"),
        }
    if "tpr_t0" in part:
        found["tpr_t0"] = {
            fields.text(eps, f"{where}.tpr_t0"): _points(points, f"{where}.tpr_t0.{eps}")
            for eps, points in fields.mapping(part["tpr_t0"], f"{where}.tpr_t0").items()
        }
    return found


def _points(raw: Any, where: str) -> dict[str, list[float]]:
    """[value, low, high] at each operating point."""
    part = fields.mapping(raw, where)
    found = {}
    for point in RATE_POINTS:
        values = [fields.share(value, f"{where}.{point}") for value in fields.sequence(part, point, where)]
        if len(values) != 3:
            fields.refuse(f"{where}.{point}", "is not [value, low, high]")
        fields.interval(values[1], values[0], values[2], f"{where}.{point}")
        found[point] = values
    return found
