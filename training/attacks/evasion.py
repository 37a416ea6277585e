"""Threat level T3, an attacker who wants a wrong class *and* a clean verdict: `evade`, and a table of its variants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..network import Branch, DetectingNetwork
from .ascent import Budget, cross_entropy, margin, project, quantise, uniform_start


@dataclass(frozen=True)
class Evasion:
    """The loss and the gradient of an attack that evades a network with a detector.

    Attributes:
        weight: lambda in `cross-entropy + lambda * type margin`, the type margin being the natural minus the
            adversarial type *logit* (a saturated softmax has no gradient, its logits do). None is selective
            PGD (Bryniarski et al., arXiv 2106.15023, simplified): the class margin until the image is
            misclassified, the type margin from there on, decided anew for each image at each step.
        branch: the batch norms that are forced while the gradient of the class is taken, omega frozen then:
            "adv" is P_type = 0, "nat" is P_type = 1. None differentiates the deployed network.
        growing: the ball grows to its radius during the first half of the steps, in steps of one grey level. A
            detector that has learnt attacks of the whole radius sees those; what it does not see is smaller.
    """

    weight: float | None = None
    branch: Branch | None = None
    growing: bool = False

    def reach(self, i: int, budget: Budget) -> tuple[float, float]:
        """(radius of the ball, step) of gradient step number i, both in whole grey levels of 1/255."""
        eps, early = math.floor(budget.eps * 255 + 1e-6), 2 * i < budget.steps
        if self.growing and early:
            return min(eps, 1 + 2 * i * eps // budget.steps) / 255, 1 / 255
        return eps / 255, max(1, round(budget.step * 255)) / 255 if early else 1 / 255


EVASIONS: dict[str, Evasion] = {
    "lambda_0.1": Evasion(weight=0.1),
    "lambda_1": Evasion(weight=1.0),
    "lambda_10": Evasion(weight=10.0),
    "selective": Evasion(),
    "selective_adv": Evasion(branch="adv"),
    "selective_nat": Evasion(branch="nat"),
    "growing": Evasion(growing=True),
    "growing_nat": Evasion(branch="nat", growing=True),
}

EVASION_BUDGET = Budget(steps=60)


class Evaded(NamedTuple):
    """The best that `evade` found for each image: of the misclassified 8-bit images, the one with the lowest score."""

    x_adv: Tensor  # [N,3,H,W], 8-bit values in [0,1]; x itself where nothing misclassified was found
    score: Tensor  # [N] P(adversarial) of the deployed network for it; infinite where nothing was found

    def success(self, threshold: float) -> Tensor:
        """[N] bool: misclassified and not flagged (`score > threshold` is what flags)."""
        return self.score <= threshold


def evade(
    net: DetectingNetwork, x: Tensor, y: Tensor, budget: Budget, how: Evasion, threshold: float, restarts: int = 1
) -> Evaded:
    """PGD for a wrong class and a score of at most `threshold`, both judged on the deployed network.

    Of `net`, in evaluation mode, only `detect` and `classify` are called.

    The search walks on 8-bit images only (whole grey levels, start included), so what it finds is what a
    server would receive: nothing is lost to rounding afterwards. Every iterate is judged, the start too
    (an image that is misclassified and unflagged as it stands counts as evaded), the best one is kept, and
    an image is left alone from its first success on. The first try starts at x, each restart uniformly in
    the ball that it has then; for steps see `Evasion.reach`.

    Args:
        x: 8-bit images [N,3,H,W] in [0,1]; y: their classes [N].
        budget: eps is rounded down to whole grey levels, the step to the nearest but at least one.
        threshold: the detector's threshold that must not be exceeded, e.g. the one for 5 % false positives.
        restarts: tries in all.

    Raises:
        ValueError: eps is under one grey level, or restarts under one.
    """
    eps, _ = how.reach(budget.steps, budget)
    if eps == 0 or restarts < 1:
        raise ValueError("evade needs eps of at least 1/255 and at least one try")
    x = quantise(x)
    best = Evaded(x.clone(), torch.full((len(x),), math.inf, device=x.device))
    active = torch.arange(len(x), device=x.device)  # images without a success so far
    for attempt in range(restarts):
        z = x[active] if attempt == 0 else quantise(uniform_start(x[active], eps if not how.growing else 1 / 255))
        for i in range(budget.steps + 1):
            if not len(active):
                return best
            z, gradient = _judge(net, z, y[active], how, best, active, last=i == budget.steps)
            todo = (best.score[active] > threshold).nonzero().squeeze(1)
            radius, step = how.reach(i, budget)
            moved = z if gradient is None else quantise(project(z + step * gradient.sign(), x[active], radius))
            z, active = (moved, active) if len(todo) == len(active) else (moved[todo], active[todo])
    return best


def selective(logits: Tensor, type_logits: Tensor, y: Tensor) -> Tensor:
    """What selective PGD ascends, [N]: the class margin until an image is misclassified, then the type margin."""
    distance, type_logits = margin(logits, y), type_logits.float()
    return torch.where(distance > 0, type_logits[:, 1] - type_logits[:, 0], distance)


def _judge(
    net: DetectingNetwork, z: Tensor, y: Tensor, how: Evasion, best: Evaded, active: Tensor, last: bool
) -> tuple[Tensor, Tensor | None]:
    """Enter z where it beats `best`; then (z, gradient to ascend), or (z, None) where it is the last iterate."""
    z = z.detach().requires_grad_(not last)
    with torch.set_grad_enabled(not last):
        signals = net.detect(z)
        deployed = net.classify(z, signals) if how.branch is None else None
        with torch.no_grad():
            verdict = (net.classify(z, signals) if deployed is None else deployed).argmax(1)
            score = signals.p_type[:, 0].float()
            better = ((verdict != y) & (score < best.score[active])).nonzero().squeeze(1)
            best.score[active[better]] = score[better]
            best.x_adv[active[better]] = z.detach()[better]
        if last:
            return z.detach(), None
        logits = net.classify(z, signals.detach(), how.branch) if deployed is None else deployed
        type_logits = signals.type_logits.float()
        natural = type_logits[:, 1] - type_logits[:, 0]
        if how.weight is None:
            loss = selective(logits, type_logits, y)
        else:
            loss = cross_entropy(logits, y) + how.weight * natural
        (gradient,) = torch.autograd.grad(loss.sum(), z)
    return z.detach(), gradient
