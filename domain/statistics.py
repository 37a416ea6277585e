"""Cheap statistics of an image's pixels, and whether they lie in the ranges that thresholds were calibrated on.

An attack in an L-infinity ball adds fine detail everywhere, colours and grey levels. What takes them away, adds more
than an attack can, or leaves traces that no camera leaves is seen in the pixels alone; thresholds of pristine images do
not speak for it. Noise of a few grey levels looks like an attack to these statistics.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# Statistic -> (reason where it lies under its range, reason where it lies over it).
REASONS: dict[str, tuple[str, str]] = {
    "colours": ("few colours", "more colours than reference images have"),
    "gaps": ("grey levels without any gap", "grey levels are missing"),
    "jumps": ("grey levels are spread evenly", "grey levels are used unevenly"),
    "peaks": ("hardly any pixel differs from its neighbours", "most pixels differ from all their neighbours"),
    "specks": ("no pixel stands out", "single pixels stand out"),
    "colour_specks": ("no pixel's colour stands out", "the colour of single pixels stands out"),
    "fine_detail": ("less fine detail than reference images have", "more fine detail than reference images have"),
    "colour_detail": ("less fine detail in colour than reference images have", "fine detail in colour, as of noise"),
}
STATISTICS = tuple(REASONS)


def measure(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """The `STATISTICS` of one RGB image, uint8 [3,H,W] with H and W of at least 3. Each is finite and at least 0.

    * colours: different colours, as a share of the pixels, in (0, 1].
    * gaps: share of values whose grey level lies beside one that is missing in their channel while the next one after
      it is not: what stretched contrast leaves. In [0, 1].
    * jumps: second differences of the channels' histograms, absolute values summed, over the number of values; in
      [0, 4]. What posterising, palettes and equalised histograms leave.
    * peaks: share of values larger or smaller than all four neighbours, in [0, 1]; a median filter takes them away.
    * specks: the largest difference of such a value from its nearest neighbour in level, in grey levels.
    * colour_specks: the same for the channels' differences from their mean.
    * fine_detail: mean absolute value of the diagonal detail (undecimated Haar wavelet, HH band), in grey levels.
    * colour_detail: the same for the channels' differences from their mean.
    """
    p = pixels.astype(np.int16)
    planes = np.concatenate([p, 3 * p - p.sum(0, dtype=np.int16)])  # [6,H,W], the last three in thirds of a grey level
    centre = planes[:, 1:-1, 1:-1]
    up, down, left, right = planes[:, :-2, 1:-1], planes[:, 2:, 1:-1], planes[:, 1:-1, :-2], planes[:, 1:-1, 2:]
    over = centre - np.maximum(np.maximum(up, down), np.maximum(left, right))
    under = np.minimum(np.minimum(up, down), np.minimum(left, right)) - centre
    excess = np.maximum(over, under)
    across = planes[:, :, 1:] - planes[:, :, :-1]
    detail = np.abs(across[:, 1:] - across[:, :-1])
    shifted = pixels.reshape(3, -1) + np.array([[0], [256], [512]], np.int16)
    counts = np.bincount(shifted.ravel(), minlength=768).reshape(3, 256)
    before, at, after = counts[:, :-2], counts[:, 1:-1], counts[:, 2:]
    return {
        "colours": colours(pixels) / p[0].size,
        "gaps": float((np.minimum(before, after) * (at == 0)).sum() / p.size),
        "jumps": float(np.abs(2 * at - before - after).sum() / p.size),
        "peaks": float(np.count_nonzero(excess[:3] > 0) / excess[:3].size),
        "specks": float(max(0, excess[:3].max())),
        "colour_specks": float(max(0, excess[3:].max()) / 3),
        "fine_detail": float(detail[:3].mean() / 2),
        "colour_detail": float(detail[3:].mean() / 6),
    }


def colours(pixels: NDArray[np.uint8]) -> int:
    """How many different colours an RGB image uint8 [3,H,W] has."""
    p = pixels.reshape(3, -1).astype(np.uint32)
    codes = np.sort((p[0] << 16) | (p[1] << 8) | p[2])
    return int(np.count_nonzero(codes[1:] != codes[:-1])) + 1


def outside(statistics: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> str | None:
    """Why an image with these statistics lies outside the ranges (both ends belong to them), None where it lies inside.

    Of several reasons it is the first one in the order of the ranges. KeyError where a range is of a statistic that the
    image lacks.
    """
    for name, (low, high) in ranges.items():
        if not low <= statistics[name] <= high:
            return REASONS[name][statistics[name] > high]
    return None
