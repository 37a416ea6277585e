"""Cheap statistics of an image's pixels, and whether they lie in the ranges that thresholds were calibrated on.

An attack in an L-infinity ball adds fine detail, colours and grey levels. What takes them away, or leaves traces that
no camera leaves, is seen in the pixels alone; thresholds of pristine images do not speak for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# Statistic -> (reason where it lies under its range, reason where it lies over it), in the order they are told in.
REASONS: dict[str, tuple[str, str]] = {
    "colours": ("few colours", "more colours than the reference images have"),
    "gaps": ("grey levels are spread evenly", "grey levels are missing"),
    "ties": ("neighbouring pixels hardly ever agree", "neighbouring pixels agree too often"),
    "fine_detail": (
        "less fine detail than the reference images have",
        "more fine detail than the reference images have",
    ),
    "grey_detail": ("fine detail differs between the colour channels", "fine detail is the same in every channel"),
}
STATISTICS = tuple(REASONS)


def measure(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """The `STATISTICS` of one RGB image, uint8 [3,H,W] with H and W of at least 2. Each is finite and at least 0.

    * colours: different colours, as a share of the pixels, in (0, 1].
    * gaps: the share of values whose grey level has a neighbour that no value of the channel has although the next one
      but one is used: what stretched contrast and posterising leave. In [0, 1].
    * ties: the share of horizontal and vertical neighbours that are equal in a channel, in [0, 1].
    * fine_detail: mean absolute value of the diagonal detail (the Haar wavelet's HH band), in grey levels.
    * grey_detail: share of that detail which the three channels have in common, in [0, 1].
    """
    p = pixels.astype(np.int32)
    codes = (p[0] << 16) | (p[1] << 8) | p[2]
    down, right = p[:, 1:] - p[:, :-1], p[:, :, 1:] - p[:, :, :-1]
    detail = (right[:, 1:] - right[:, :-1]) * 0.5
    size = float(np.abs(detail).mean())
    ties = 2 * pixels.size - pixels.shape[0] * (pixels.shape[1] + pixels.shape[2])
    return {
        "colours": float(len(np.unique(codes)) / codes.size),
        "gaps": gaps(pixels),
        "ties": float((ties - np.count_nonzero(down) - np.count_nonzero(right)) / ties),
        "fine_detail": size,
        "grey_detail": float(np.abs(detail.mean(0)).mean() / size) if size else 1.0,
    }


def gaps(pixels: NDArray[np.uint8]) -> float:
    """See `measure`."""
    counts = np.bincount((pixels.reshape(3, -1) + (np.arange(3)[:, None] << 8)).ravel(), minlength=768).reshape(3, 256)
    missing = counts[:, 1:-1] == 0
    return float((np.minimum(counts[:, :-2], counts[:, 2:]) * missing).sum() / pixels.size)


def outside(statistics: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> str | None:
    """Why an image with these statistics lies outside the ranges (both ends belong to them), None where it lies inside.

    KeyError where a range is of a statistic that the image lacks.
    """
    for name, (low, high) in ranges.items():
        if not low <= statistics[name] <= high:
            return REASONS[name][statistics[name] > high]
    return None
