"""The paper's attacks (sec. 5.3 and 5.9), which return their last iterate, and PGD with restarts, which the best.

Conventions are those of the paper and the code it builds on: PGD_sat starts uniformly in the ball (Madry), PGD_trades
at 0.001 times a standard normal (TRADES), CW_inf is PGD on the margin.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .ascent import Budget, Model, ascend, cross_entropy, margin, normal_start, uniform_start, whole_levels
from .best import BestIterate, deployed


def fgsm(model: Model, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """One signed step of `budget.eps` from x itself (Goodfellow et al.); steps and step size are not used."""
    return ascend(lambda z: cross_entropy(model(z), y), x, x, Budget(budget.eps, budget.eps, 1))


def pgd_sat(model: Model, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """PGD on cross-entropy from a uniform random start (Madry et al.)."""
    return ascend(lambda z: cross_entropy(model(z), y), x, uniform_start(x, budget.eps), budget)


def pgd_trades(model: Model, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """PGD on cross-entropy from 0.001 times normal noise (the TRADES code's start)."""
    return ascend(lambda z: cross_entropy(model(z), y), x, normal_start(x), budget)


def cw_inf(model: Model, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """PGD on -max(z_y - max_other + 50, 0) from a uniform random start (Carlini-Wagner loss, L-infinity)."""
    return ascend(lambda z: -(50 - margin(model(z), y)).clamp(min=0), x, uniform_start(x, budget.eps), budget)


def pgd_restarts(model: Model, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """`pgd_sat` from `budget.restarts` starts; of all iterates at 8 bits the one with the largest margin is kept.

    The margin is that of the deployed network in float32. x are 8-bit images; eps is rounded down to whole grey levels.
    """
    budget = replace(budget, eps=whole_levels(budget.eps))
    best = BestIterate(deployed(model), x, y)
    for _ in range(budget.restarts):
        best.ascend(lambda z: cross_entropy(model(z), y), x, uniform_start(x, budget.eps), budget)
    return best.x_adv


def adaptive(model: Model, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """The paper's adaptive attack (sec. 5.9): `pgd_trades` on the whole training loss instead of cross-entropy.

    Its "Eq. (14)" is read as Eq. 24 with the true label: cross-entropy of the class plus L_type of an adversarial
    image, so that the attack also gains from the detector's error. L_nat does not depend on x_adv. `model` says both
    where it has `with_type`, x -> (logits [N,K], type logits [N,2], the first adversarial); one that detects
    nothing is attacked by `pgd_trades`. An attacker who wants to evade, `evasion.evade`, is stronger.
    """
    with_type = getattr(model, "with_type", None)

    def loss(z: Tensor) -> Tensor:
        if with_type is None:
            return cross_entropy(model(z), y)
        logits, type_logits = with_type(z)
        return cross_entropy(logits, y) + cross_entropy(type_logits, torch.zeros_like(y))

    return ascend(loss, x, normal_start(x), budget)
