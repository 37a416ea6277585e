"""How far scores and omega have drifted from the clean reference.

Plain Python and numpy; knows neither models nor requests.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from ..core.contract import Contract
from ..core.domains import Domain

SCORE_HALF_LIFE_IMAGES = 2_000
OMEGA_HALF_LIFE_IMAGES = 500
MIN_SHARE = 0.002  # score bins that hold less of the reference are merged into their neighbour


def score_bins(domain: Domain) -> tuple[list[float], list[float]]:
    """Upper edges of B score bins, the last one infinite, and the share [B] of the domain's images in each.

    A histogram of even bins sees nothing below its first edge, and that is where a sharp detector puts nearly every
    clean image. But the thresholds are quantiles of the same distribution, so they split that bin. A bin with
    less than `MIN_SHARE` joins the one before it: an expected count near zero would make any statistic jump.
    """
    thresholds, histogram = domain.thresholds, domain.histogram
    above = {thresholds.suspicious.score: thresholds.suspicious.fpr}  # score -> share of clean images over it
    above[thresholds.adversarial.score] = thresholds.adversarial.fpr
    total = sum(histogram.counts)
    left = total
    for edge, count in zip(histogram.edges[1:-1], histogram.counts[:-1], strict=True):
        left -= count
        above.setdefault(edge, left / total if total else 0.0)
    edges: list[float] = []
    shares: list[float] = []
    before = 1.0
    for edge in sorted(above):
        share = before - above[edge]
        if share >= MIN_SHARE and above[edge] >= MIN_SHARE:
            edges.append(edge)
            shares.append(share)
            before = above[edge]
    return [*edges, math.inf], [*shares, before]


class ScoreDrift:
    """Population stability index of recent scores against those of a domain, older ones fading by half each half-life.

    0 is no difference; under no drift it is about (bins - 1) / images. 0.1 is commonly called small, 0.25 a shift.
    """

    __slots__ = ("_edges", "_expected", "_grow", "_mass", "_squares", "_weight")

    def __init__(self, domain: Domain, half_life: float = SCORE_HALF_LIFE_IMAGES) -> None:
        self._edges, self._expected = score_bins(domain)
        self._mass = [0.0] * len(self._edges)
        self._grow = 2 ** (1 / half_life)
        self._weight = 1.0
        self._squares = 0.0

    def add(self, score: float) -> None:
        """One image. Newer ones weigh more, so that nothing else needs to be touched."""
        weight = self._weight
        self._mass[bisect_left(self._edges, score)] += weight
        self._squares += weight * weight
        self._weight = weight * self._grow
        if weight > 1e12:
            self._mass = [mass / weight for mass in self._mass]
            self._squares /= weight * weight
            self._weight = 1.0

    @property
    def images(self) -> float:
        """How many images of equal weight the window is worth."""
        return sum(self._mass) ** 2 / self._squares if self._squares else 0.0

    @property
    def value(self) -> float:
        """The index; 0 before the first image."""
        total = sum(self._mass)
        if not total:
            return 0.0
        index = 0.0
        for mass, expected in zip(self._mass, self._expected, strict=True):
            share = max(mass / total, 1e-4)  # an empty bin must not make the logarithm infinite
            index += (share - expected) * math.log(share / expected)
        return index


class OmegaDrift:
    """How far the recent mean of omega lies from the clean one, in clean standard deviations, for each block.

    For a block with channels c: sqrt(mean_c (m_c - mean_c)^2 / mean_c std_c^2). Under no drift it is about
    1 / sqrt(images); pooling keeps a channel that hardly ever moves from drowning the others.
    """

    __slots__ = ("_blocks", "_keep", "_mean", "_recent", "_scratch", "_sum", "_sum_squares", "_variance")

    def __init__(self, contract: Contract, half_life: float = OMEGA_HALF_LIFE_IMAGES) -> None:
        self._blocks = block_ranges(contract)
        self._mean = contract.reference.omega_mean
        std = contract.reference.omega_std.astype(np.float64)
        self._variance = {name: float(np.mean(std[first:last] ** 2)) for name, (first, last) in self._blocks.items()}
        self._recent = np.zeros_like(self._mean)
        self._scratch = np.empty_like(self._mean)
        self._keep = 0.5 ** (1 / half_life)
        self._sum = self._sum_squares = 0.0

    def add(self, row: NDArray[np.float32]) -> None:
        """omega [C] float32 of one image; allocates nothing."""
        weight = 1 - self._keep
        self._recent *= self._keep
        np.multiply(row, weight, out=self._scratch)
        self._recent += self._scratch
        self._sum = self._sum * self._keep + weight
        self._sum_squares = self._sum_squares * self._keep**2 + weight**2

    @property
    def images(self) -> float:
        """How many images of equal weight the window is worth."""
        return self._sum**2 / self._sum_squares if self._sum_squares else 0.0

    def values(self) -> dict[str, float]:
        """The distance of each block; 0 before the first image."""
        if not self._sum:
            return dict.fromkeys(self._blocks, 0.0)
        return self.distances(self._recent / self._sum)

    def distances(self, row: NDArray[np.float32]) -> dict[str, float]:
        """The distance of each block for one row [C], of one image or a mean."""
        off = row.astype(np.float64) - self._mean
        return {
            name: math.sqrt(float(np.mean(off[first:last] ** 2)) / (self._variance[name] or 1.0))
            for name, (first, last) in self._blocks.items()
        }


def block_ranges(contract: Contract) -> dict[str, tuple[int, int]]:
    """Block name -> its channels [first, last) of omega; a block is what stands before the last dot."""
    ranges: dict[str, tuple[int, int]] = {}
    for part in contract.omega:
        name = part.name.rpartition(".")[0] or part.name
        first = ranges[name][0] if name in ranges else part.offset
        ranges[name] = (first, part.offset + part.length)
    return ranges
