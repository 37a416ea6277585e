"""What a score means: a map from scores to P(attacked), and how far either is from the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

Groups = Sequence[NDArray[np.float64]]  # probabilities of several groups of images
PRIOR = 0.5  # share of attacked images at which the score map is fitted


@dataclass(frozen=True)
class ScoreMap:
    """P(attacked) at a prior of 0.5, piecewise linear in the score: scores rise, probabilities do not fall."""

    scores: list[float]
    probabilities: list[float]

    def __call__(self, scores: Tensor) -> NDArray[np.float64]:
        return np.asarray(np.interp(scores.double().numpy(), self.scores, self.probabilities), np.float64)


def fit_score_map(benign: Tensor, attacked_scores: Sequence[Tensor]) -> ScoreMap:
    """Isotonic regression (Zadrozny and Elkan, KDD 2002) of benign against attacked scores, both with half the weight.

    Of the attacked half each tensor has an equal part. No probability is nearer to 0 or 1 than the sample allows
    (Laplace's rule), so that no prior is overruled by an empty bin.
    """
    weights = [torch.full((len(benign),), 0.5 / len(benign), dtype=torch.float64)]
    weights += [
        torch.full((len(s),), 0.5 / len(attacked_scores) / len(s), dtype=torch.float64) for s in attacked_scores
    ]
    kinds = torch.cat([torch.zeros(len(benign)), *(torch.ones(len(s)) for s in attacked_scores)])
    scores = torch.cat([benign, *attacked_scores]).double().numpy()
    count = min(len(benign), sum(map(len, attacked_scores)))
    least = 1 / (count + 2)
    fitted = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    fitted.fit(scores, kinds.double().numpy(), sample_weight=torch.cat(weights).numpy())
    at, p = np.asarray(fitted.X_thresholds_, np.float64), np.asarray(fitted.y_thresholds_, np.float64)
    if at[0] > 0:
        at, p = np.append(0.0, at), np.append(p[0], p)
    if at[-1] < 1:
        at, p = np.append(at, 1.0), np.append(p, p[-1])
    return ScoreMap([float(v) for v in at], [float(v) for v in p])


def brier(benign: Groups, hostile: Groups) -> float:
    """Mean squared error of P(attacked): groups of either side count alike, and both sides half."""
    sides = (np.mean([(p**2).mean() for p in benign]), np.mean([((1 - p) ** 2).mean() for p in hostile]))
    return float(np.mean(sides))


def expected_calibration_error(benign: Groups, hostile: Groups, bins: int = 15) -> float:
    """ECE (Guo et al., arXiv 1706.04599) over equal bins of P(attacked), weighted as in `brier`."""
    sides = [(benign, 0), (hostile, 1)]
    p = np.concatenate([q for groups, _ in sides for q in groups])
    kind = np.concatenate([np.full(len(q), k) for groups, k in sides for q in groups])
    weight = np.concatenate([np.full(len(q), 0.5 / len(groups) / len(q)) for groups, _ in sides for q in groups])
    bin_of = np.minimum((p * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(bin_of, weight * (kind - p), bins)).sum())
