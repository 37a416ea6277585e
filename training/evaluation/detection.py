"""Measures of the detector with their intervals, and the thresholds that a server applies.

A score is P_type[:, 0], the probability of "adversarial", in float32. An image is flagged where
`score > threshold`, everywhere in this project; so a threshold may itself be the score of a clean image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ..networks.checkpoint import Calibration
from ..networks.network import ADVERSARIAL, DetectingNetwork

FPRS = (0.05, 0.01)  # the two operating points: suspicious, adversarial


def auroc(clean: Tensor, adversarial: Tensor) -> float:
    """Area under the ROC curve of scores [N] and [M]: the probability that an adversarial image scores higher.

    Ties count half, so a detector that always says the same has 0.5. ValueError where either is empty or
    not finite.
    """
    clean, adversarial = _scores(clean), _scores(adversarial)
    kind = np.concatenate([np.zeros(len(clean)), np.ones(len(adversarial))])
    return float(roc_auc_score(kind, torch.cat([clean, adversarial]).double().numpy()))


def threshold_at(clean: Tensor, fpr: float) -> float:
    """The lowest threshold among the clean scores [N] that flags at most a share `fpr` of them.

    It is one of the scores, as an exact float32 value: whoever compares in float32 or float64 flags the same
    images. Equal scores are flagged together or not at all, so ties can only lower the realised rate.
    """
    if not 0 <= fpr < 1:
        raise ValueError(f"a false-positive rate lies in [0, 1), not {fpr}")
    ordered = _scores(clean).sort(descending=True).values
    allowed = math.floor(fpr * len(ordered) + 1e-9)  # 1e-9: 0.07 * 100 is 7.000000000000001, 0.29 * 100 is under 29
    return float(ordered[allowed])


def flagged(scores: Tensor, threshold: float) -> float:
    """Share of scores [N] over the threshold: the FPR on clean images, the TPR on adversarial ones."""
    return float((_scores(scores) > threshold).double().mean())


def bootstrap(
    statistic: Callable[..., float], *samples: Tensor, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `statistic(*samples)`; every sample [N_i] is redrawn on its own, with replacement."""
    if resamples < 2 or not 0 < level < 1:
        raise ValueError("bootstrap needs at least 2 resamples and a level between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    values = [
        statistic(*(s[torch.randint(len(s), (len(s),), generator=generator)] for s in samples))
        for _ in range(resamples)
    ]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def histogram(scores: Tensor, bins: int = 50) -> tuple[list[float], list[int]]:
    """(edges [bins + 1] from 0 to 1, counts [bins]); a score of exactly 1 belongs to the last bin."""
    counts, edges = np.histogram(_scores(scores).numpy(), bins=bins, range=(0.0, 1.0))
    return [float(e) for e in edges], [int(c) for c in counts]


def calibrate(net: DetectingNetwork, batches: Iterable[Tensor], fprs: Iterable[float] = FPRS) -> Calibration:
    """Score clean images and summarise them; the network is used in evaluation mode and left as it was.

    Args:
        batches: clean validation images, uint8 [n,3,H,W] each, on any device (`split.images.split(500)`).
        fprs: the rates that get a threshold.

    Raises:
        ValueError: an empty set, or something else than uint8 batches.
    """
    was_training = net.training
    net.eval()
    device = next(net.parameters()).device
    scores: list[Tensor] = []
    total: Tensor | None = None
    squares: Tensor | None = None
    for images in batches:
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(f"calibrate takes uint8 batches [n,3,H,W], not {images.dtype} {list(images.shape)}")
        with torch.inference_mode():
            x = images.to(device).float().div(255).contiguous(memory_format=torch.channels_last)
            signals = net.detect(x)
            scores.append(signals.p_type[:, ADVERSARIAL].float().cpu())
            omega = torch.cat([o.float() for o in signals.omega], dim=1).double().cpu()
        total = omega.sum(0) if total is None else total + omega.sum(0)
        squares = omega.square().sum(0) if squares is None else squares + omega.square().sum(0)
    net.train(was_training)
    if total is None or squares is None:
        raise ValueError("calibrate was given no images")
    score = torch.cat(scores)
    mean = total / len(score)
    edges, counts = histogram(score)
    return Calibration(
        images=len(score),
        thresholds={fpr: threshold_at(score, fpr) for fpr in fprs},
        histogram_edges=edges,
        histogram_counts=counts,
        omega_mean=mean.float().clone(),
        omega_std=(squares / len(score) - mean.square()).clamp(min=0).sqrt().float().clone(),
    )


def _scores(scores: Tensor) -> Tensor:
    """[N] float32 on the CPU; ValueError where empty or not finite."""
    scores = scores.detach().float().cpu().flatten()
    if not len(scores) or not bool(torch.isfinite(scores).all()):
        raise ValueError("scores must be finite, and at least one is needed")
    return scores
