"""Shares of images, and how far they can be believed."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(hits: float, n: int, level: float = 0.95) -> list[float]:
    """[share, low, high] of `hits` among n, the interval being Wilson's; ValueError for n = 0.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if n < 1:
        raise ValueError("a share needs at least one image")
    z, p = NormalDist().inv_cdf((1 + level) / 2), hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return [p, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))]


def least_for(rate: float) -> int:
    """How many images it takes at least for one of their scores to be a threshold that flags a share `rate` (conformal:
    of n, the k-th least with k at least (n + 1)(1 - rate))."""
    return math.ceil(1 / rate - 1e-9) - 1


def enough_for(rate: float, factor: float = 2.0) -> int:
    """How many images it takes for `rate` to be known within `factor`: Wilson's interval then lies between."""

    def within(n: int) -> bool:
        _, low, high = wilson(rate * n, n)
        return low >= rate / factor and high <= rate * factor

    low, high = 1, 2
    while not within(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return high
