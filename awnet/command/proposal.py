"""A threshold that marked findings propose, and how far somebody who is behind some of them could have moved it.

Of N natural images only those above the present threshold matter to a higher one, and findings have their scores: the
images of findings that somebody marked as false alarms. The proposal is the conformal quantile of all N: the m-th
smallest score, m = ceil((N + 1)(1 - rate)), which is the j-th largest, j = N - m + 1.

Poison. Let k of the N images be an attacker's, with scores of its choice. The other N - k in order are y_1 <= ...; the
m-th smallest of all N then lies between y_(m-k) and y_m, whatever the k are: k values can push at most k others below
it, or above it (D. L. Donoho and P. J. Huber, "The notion of breakdown point", 1983, for quantiles). So with k >= j the
attacker alone decides: the breakdown share of this threshold is its own rate. What is seen is the mixture, of which k
unknown ones are poison; without them the threshold would have been no less than the quantile of what is left where the
k highest are taken out. That is what the proposal is worth at least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from domain.shares import wilson


@dataclass(frozen=True)
class Proposal:
    """What a threshold would be, and do.

    Attributes:
        score: images over it are flagged.
        rank: it is the score of the `rank`-th highest natural image.
        fpr: natural images over it, [share, low, high].
        fpr_before: over the present one.
        tpr: confirmed images over it, [share, low, high] of those that the present threshold found; None without any.
    """

    score: float
    rank: int
    fpr: list[float]
    fpr_before: list[float]
    tpr: list[float] | None


def rank_of(images: int, rate: float) -> int:
    """j: the threshold is the j-th highest of so many natural scores; 0 where there are too few for this rate."""
    return images - math.ceil((images + 1) * (1 - rate)) + 1


def propose(images: int, natural: Sequence[float], confirmed: Sequence[float], rate: float) -> Proposal:
    """The threshold at which a share `rate` of natural images is flagged.

    Args:
        images: natural ones that were judged in all.
        natural: scores of those of them that are over the present threshold.
        confirmed: scores of attacked images over it.

    Raises:
        ValueError: too few images for this rate, or fewer false alarms than the present threshold may have: it is not
            too low.
    """
    rank = rank_of(images, rate)
    if rank < 1:
        raise ValueError(f"{images} images say nothing of a rate of {rate:g}: it takes {math.ceil(1 / rate) - 1}")
    if len(natural) > images:
        raise ValueError(f"{len(natural)} false alarms among {images} images: --images is of all that were judged")
    if rank > len(natural):
        raise ValueError(
            f"{len(natural)} false alarms among {images} images are no more than a rate of {rate:g} allows ({rank}): "
            "the present threshold is not too low"
        )
    score = sorted(natural, reverse=True)[rank - 1]
    return Proposal(
        score,
        rank,
        wilson(sum(one > score for one in natural), images),
        wilson(len(natural), images),
        wilson(sum(one > score for one in confirmed), len(confirmed)) if confirmed else None,
    )


def without_poison(images: int, natural: Sequence[float], rate: float, poison: int, present: float) -> float:
    """The least that the proposal can have been without `poison` of the images: had those with the highest scores been
    an attacker's. `present` where nothing above it is left."""
    rest = sorted(natural, reverse=True)[poison:]
    rank = rank_of(images - poison, rate)
    return rest[rank - 1] if 0 < rank <= len(rest) else present


def with_poison(images: int, natural: Sequence[float], rate: float, poison: int) -> float:
    """The most that the proposal could become by `poison` further images: 1 where the attacker alone decides."""
    rank = rank_of(images + poison, rate)
    return 1.0 if poison >= rank else sorted(natural, reverse=True)[min(len(natural), rank - poison) - 1]
