"""Shares of images, and how far they can be believed."""

from __future__ import annotations

import math

Z = 1.959963984540054  # 95 %, two-sided


def interval(hits: float, of: int) -> tuple[float, float]:
    """The Wilson interval at 95 % of a share; everything where there is nothing to go by."""
    if not of:
        return 0.0, 1.0
    share, square = hits / of, Z * Z
    middle = (share + square / (2 * of)) / (1 + square / of)
    reach = Z / (1 + square / of) * math.sqrt(share * (1 - share) / of + square / (4 * of * of))
    return max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))
