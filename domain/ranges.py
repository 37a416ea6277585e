"""Ranges of an image's statistics, drawn around images and around what attacks make of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .statistics import STATISTICS

Statistics = NDArray[np.float64]  # [N, len(STATISTICS)]
Ranges = dict[str, tuple[float, float]]
PRISTINE_SHARE = 0.002  # of pristine images that each end of a range may leave out
ATTACKED_SHARE = 0.005  # of attacked images
# What an attack takes away, and what it leaves as it is: only there has a range of pristine images a lower end.
LOW_ENDS = ("colours", "peaks")
REACH = {  # the largest value that a statistic can have
    "colours": 1.0,
    "gaps": 1.0,
    "jumps": 4.0,
    "peaks": 1.0,
    "specks": 255.0,
    "colour_specks": 340.0,
    "fine_detail": 255.0,
    "colour_detail": 340.0,
}


def pristine_ranges(pristine: Statistics, in_the_ball: Sequence[Statistics]) -> Ranges:
    """Ranges that hold pristine images and what lies in the ball around them, and whose other end is open.

    Open means the whole reach of the statistic that is possible.
    """
    ranges = {}
    for i, name in enumerate(STATISTICS):
        low, high = _ends(pristine[:, i], [b[:, i] for b in in_the_ball])
        ranges[name] = (low, REACH[name]) if name in LOW_ENDS else (0.0, high)
    return ranges


def pool_ranges(pool: Statistics, in_the_ball: Sequence[Statistics]) -> Ranges:
    """Ranges with both ends, of all images of the pool and of what lies in the ball around pristine ones."""
    return {name: _ends(pool[:, i], [b[:, i] for b in in_the_ball]) for i, name in enumerate(STATISTICS)}


def _ends(natural: NDArray[np.float64], in_the_ball: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    lows = [np.quantile(natural, PRISTINE_SHARE), *(np.quantile(b, ATTACKED_SHARE) for b in in_the_ball)]
    highs = [np.quantile(natural, 1 - PRISTINE_SHARE), *(np.quantile(b, 1 - ATTACKED_SHARE) for b in in_the_ball)]
    return float(min(lows)), float(max(highs))
