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

_FIRST_LEVELS = np.array([[0], [256], [512]], np.intp)  # of each channel's histogram, side by side


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
    # Planes lie behind each other in one line, and neighbours are the same line shifted: operations on whole lines are
    # few and fast. What is compared across the end of a row is cut off before anything is counted.
    _, height, width = pixels.shape
    rgb = pixels.reshape(3, height * width)
    planes = np.empty((6, height * width), np.int16)  # the last three in thirds of a grey level
    planes[:3] = rgb
    np.subtract(3 * planes[:3], planes[0] + planes[1] + planes[2], out=planes[3:])
    line = planes.ravel()
    excess = _excess(line, width).reshape(6, height, width)[:, 1:-1, 1:-1]
    detail = _detail(line, width).reshape(6, height, width)[:, :-1, :-1]
    sums, highest = detail.sum((1, 2), dtype=np.int64).tolist(), excess.max((1, 2)).tolist()
    counts = np.bincount((rgb + _FIRST_LEVELS).ravel(), minlength=768).astype(np.int32).reshape(3, 256)
    before, at, after = counts[:, :-2], counts[:, 1:-1], counts[:, 2:]
    return {
        "colours": colours(pixels) / rgb[0].size,
        "gaps": float(np.minimum(before, after)[at == 0].sum() / rgb.size),
        "jumps": float(np.abs(2 * at - before - after).sum() / rgb.size),
        "peaks": float(np.count_nonzero(excess[:3] > 0) / excess[:3].size),
        "specks": float(max(0, *highest[:3])),
        "colour_specks": max(0, *highest[3:]) / 3,
        "fine_detail": sum(sums[:3]) / detail[:3].size / 2,
        "colour_detail": sum(sums[3:]) / detail[3:].size / 6,
    }


def _excess(line: NDArray[np.int16], width: int) -> NDArray[np.int16]:
    """By how much a value lies over the highest of its four neighbours or under the lowest; the ends are not set."""
    up, down, left, right = line[: -2 * width], line[2 * width :], line[width - 1 : -width - 1], line[width + 1 :]
    right = right[: left.size]
    found = np.empty_like(line)
    under, centre, beside = found[width:-width], line[width:-width], np.minimum(left, right)
    np.subtract(np.minimum(np.minimum(up, down), beside, out=beside), centre, out=under)
    over = np.maximum(up, down)
    np.maximum(over, np.maximum(left, right, out=beside), out=over)
    np.maximum(under, np.subtract(centre, over, out=over), out=under)
    return found


def _detail(line: NDArray[np.int16], width: int) -> NDArray[np.int16]:
    """Absolute values of the second difference across and down; the end is not set."""
    across = line[1:] - line[:-1]
    found = np.empty_like(line)
    inner = found[: -width - 1]
    np.abs(np.subtract(across[width:], across[:-width], out=inner), out=inner)
    return found


def colours(pixels: NDArray[np.uint8]) -> int:
    """How many different colours an RGB image uint8 [3,H,W] has."""
    red, green, blue = pixels.reshape(3, -1)
    codes = red.astype(np.uint32)
    for channel in (green, blue):
        codes <<= 8
        codes |= channel
    codes.sort()
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
