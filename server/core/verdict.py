"""Scores and calibrated thresholds to verdicts, logits to class probabilities."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .contract import Thresholds

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


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax over the last axis, in float64; logits [..., K] -> [..., K]."""
    exponent = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    return np.asarray(exponent / exponent.sum(axis=-1, keepdims=True))


def top(row: NDArray[np.float64], count: int) -> list[int]:
    """The `count` most probable classes of one row [K], most probable first, ties by class number."""
    order: list[int] = np.argsort(-row, kind="stable")[:count].tolist()
    return order
