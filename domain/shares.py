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
