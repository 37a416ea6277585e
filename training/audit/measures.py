"""Curves and figures from per-image answers; nothing here asks a network.

`score` [N] is P(adversarial), `correct` bool [N] whether the class is right. Curves are short lists of rounded
numbers, so that the report holds them and every plot is drawn from the report alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_curve
from torch import Tensor

from domain.shares import wilson

Floats = NDArray[np.float64]
REACH = 12.0  # log-odds that a histogram of scores shows; what lies beyond is in the outermost bins


def interval(share: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a share of so many images, see `shares.wilson`."""
    _, low, high = wilson(round(share * images), images)
    return low, high


def log_odds(score: float) -> float:
    """Of a score in [0, 1], within `REACH`."""
    least = 1 / (1 + math.exp(REACH))
    held = min(max(score, least), 1 - least)
    return math.log(held / (1 - held))


def histogram(scores: Tensor, bins: int = 48) -> list[int]:
    """Counts of scores [N] in bins of equal width of their log-odds, from -`REACH` to `REACH`."""
    counts, _ = np.histogram([log_odds(s) for s in scores.tolist()], bins, (-REACH - 1e-6, REACH + 1e-6))
    return [int(c) for c in counts]


def roc(clean: Tensor, adversarial: Tensor, points: int = 30) -> list[list[float]]:
    """[false-positive rates, true-positive rates] of a threshold on the score, dense where false positives are rare."""
    kind = np.concatenate([np.zeros(len(clean)), np.ones(len(adversarial))])
    fpr, tpr, _ = roc_curve(kind, torch.cat([clean, adversarial]).numpy(), drop_intermediate=False)
    at = np.concatenate([[0.0], np.geomspace(1e-3, 1.0, points)])
    reached = tpr[np.searchsorted(fpr, at, side="right") - 1]  # the highest rate at no more false positives
    return [_rounded(at), _rounded(reached)]


def risk_coverage(correct: Tensor, score: Tensor, points: int = 25) -> list[list[float]]:
    """[coverage, risk]: the share of wrong classes among the share of images with the lowest scores.

    Images with equal scores are accepted in the order given, so a score that says nothing has a flat curve.
    """
    order = score.argsort(stable=True)
    wrong = (~correct[order]).double().cumsum(0)
    counts = np.unique(np.linspace(1, len(correct), min(points, len(correct))).round().astype(int))
    return [_rounded(counts / len(correct)), _rounded(wrong.numpy()[counts - 1] / counts)]


def reliability(probability: Tensor, attacked: Tensor, bins: int = 10) -> list[list[float]]:
    """[mean probability, share attacked, images] of the bins of equal width that hold any image."""
    which = (probability.double() * bins).long().clamp(max=bins - 1)
    out: list[list[float]] = [[], [], []]
    for b in which.unique().tolist():
        inside = which == b
        row = (probability[inside].double().mean(), attacked[inside].double().mean(), inside.sum())
        for column, value in zip(out, row, strict=True):
            column.append(round(float(value), 5))
    return out


def implied_accuracy(correct: Tensor, flagged: Tensor, evaded: Tensor) -> float:
    """What a detector robust at eps implies of a classifier at eps / 2 (Tramer, arXiv 2107.11630, theorem 4).

    The share of images that are right and accepted as they are, and that no attack within eps turned wrong and
    accepted: an (inefficient) classifier with that accuracy at half the radius would exist.

    Args:
        correct, flagged: bool [N], of the clean images.
        evaded: bool [N], an attack succeeded within eps.
    """
    return float((correct & ~flagged & ~evaded).double().mean())


def _rounded(values: Floats) -> list[float]:
    return [round(float(v), 5) for v in values]
