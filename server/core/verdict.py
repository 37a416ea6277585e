"""Scores and calibrated thresholds to verdicts and P(attacked), logits to class probabilities."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from domain.statistics import measure

from .contract import Contract
from .domains import Domain, Thresholds, locate
from .images import Traits

Verdict = Literal["clean", "suspicious", "adversarial"]
VERDICTS: tuple[Verdict, ...] = ("clean", "suspicious", "adversarial")


def judge(score: float, thresholds: Thresholds) -> Verdict:
    """The verdict on an unrounded score P(adversarial): strictly over a threshold is flagged.

    Raises:
        ValueError: the score is not finite; a broken detector must never read as clean.
    """
    if not math.isfinite(score):
        raise ValueError("the score is not finite")
    if score > thresholds.adversarial.score:
        return "adversarial"
    return "suspicious" if score > thresholds.suspicious.score else "clean"


class Judgement(NamedTuple):
    """What is said about one image.

    Attributes:
        score: P(adversarial), unrounded.
        verdict: by the thresholds of `applied`.
        applied: the domain that the image lies in; the last one where it lies in none.
        why: the image is not calibrated, None where it is: then it lies in `applied`.
        probability: P(attacked) at the prior that was asked for; None where the contract has no score map.
    """

    score: float
    verdict: Verdict
    applied: Domain
    why: str | None
    probability: float | None

    @property
    def calibrated(self) -> bool:
        """Whether the thresholds speak for this image."""
        return self.why is None


def judge_image(score: float, traits: Traits, domains: Sequence[Domain], prior: float) -> Judgement:
    """The judgement on one image where a share `prior`, in (0, 1), of all images is attacked. Raises as `judge`."""
    applied, why = locate(domains, traits)
    verdict = judge(score, applied.thresholds)
    score_map = applied.score_map
    return Judgement(score, verdict, applied, why, None if score_map is None else score_map.probability(score, prior))


def verdict_on(score: float, traits: Traits, domains: Sequence[Domain]) -> Verdict:
    """`judge` by the thresholds of the domain that the image lies in."""
    return judge(score, locate(domains, traits)[0].thresholds)


def golden_verdicts(contract: Contract) -> list[Verdict]:
    """The right verdict on each golden image."""
    golden = contract.golden
    return [
        verdict_on(score, Traits(measure(pixels)), contract.domains)
        for pixels, score in zip(golden.image, golden.outputs["p_type"][:, 0].tolist(), strict=True)
    ]


def shown(score: float, thresholds: Thresholds) -> float:
    """`score` at six significant digits, or in full where rounding would carry it across a threshold."""
    rounded = significant(score)
    for threshold in (thresholds.suspicious.score, thresholds.adversarial.score):
        if (rounded > threshold) != (score > threshold):
            return score
    return rounded


def significant(value: float) -> float:
    """`value` at six significant digits."""
    return float(f"{value:.6g}")


def ranked(logits: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
    """The `count` most probable classes of an image with these logits [K], and their probabilities: softmax in float64.

    The most probable class first, ties by class number.
    """
    # Plain floats: a few of them are exponentiated and sorted before numpy has looked at its arguments. Differences are
    # rounded to float32, as if they had been taken there.
    given = logits.tolist()
    highest = max(given)
    likely = list(map(math.exp, array("f", [logit - highest for logit in given])))
    whole = sum(likely)
    order = sorted(range(len(likely)), key=likely.__getitem__, reverse=True)
    return [(k, likely[k] / whole) for k in order[:count]]
