"""Threat level T3, an attacker who wants a wrong class *and* a clean verdict: `evade`, and a table of its variants."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..networks.network import Branch, DetectingNetwork
from .ascent import Budget, cross_entropy, margin, project, quantise, uniform_start, whole_levels
from .search import Detecting, Evaded, Seen, Strategy, Walk, search
from .two_gradients import Orthogonal, TwoGradients


@dataclass(frozen=True)
class Evasion:
    """A strategy with one loss, ascended by signed gradients in whole grey levels.

    The first try starts at x, each restart uniformly in the ball that it has then; for steps see `reach`.

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
    steps: int = 60

    def reach(self, i: int, budget: Budget) -> tuple[float, float]:
        """(radius of the ball, step) of gradient step number i, both in whole grey levels of 1/255."""
        eps, early = round(255 * whole_levels(budget.eps)), 2 * i < budget.steps
        if self.growing and early:
            return min(eps, 1 + 2 * i * eps // budget.steps) / 255, 1 / 255
        return eps / 255, max(1, round(budget.step * 255)) / 255 if early else 1 / 255

    def start(self, x: Tensor, budget: Budget, first: bool) -> Tensor:
        radius = 1 / 255 if self.growing else whole_levels(budget.eps)
        return x if first else quantise(uniform_start(x, radius))

    def step(self, i: int, walk: Walk, z: Tensor, seen: Seen, x: Tensor, y: Tensor, budget: Budget) -> Walk:
        if self.weight is None:
            loss = selective(seen.attacked, seen.log_odds, y)
        else:
            loss = cross_entropy(seen.attacked, y) - self.weight * seen.log_odds
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        radius, step = self.reach(i, budget)
        return walk._replace(at=project(z.detach() + step * gradient.sign(), x, radius))


EVASIONS: dict[str, Strategy] = {
    "lambda_0.1": Evasion(weight=0.1),
    "lambda_1": Evasion(weight=1.0),
    "lambda_10": Evasion(weight=10.0),
    "selective": Evasion(),
    "selective_adv": Evasion(branch="adv"),
    "selective_nat": Evasion(branch="nat"),
    "growing": Evasion(growing=True),
    "growing_nat": Evasion(branch="nat", growing=True),
    "two_gradients": TwoGradients(branch="nat"),
    "selective_published": Orthogonal(projected=False),
    "orthogonal": Orthogonal(),
}


def evasions_of(net: DetectingNetwork) -> dict[str, Strategy]:
    """Those of `EVASIONS` that mean something against this network.

    Where one branch answers whatever the detector says, none forces the other: they take the deployed gradient instead,
    and what then is the same attack twice is left out.
    """
    found: dict[str, Strategy] = {}
    for name, how in EVASIONS.items():
        if net.answering is not None and how.branch not in (None, net.answering):
            assert isinstance(how, Evasion | TwoGradients)
            how = replace(how, branch=None)
        if how not in found.values():
            found[name] = how
    return found


def evade(
    net: DetectingNetwork, x: Tensor, y: Tensor, budget: Budget, how: Strategy, threshold: float, restarts: int = 1
) -> Evaded:
    """`search` for a wrong class and a score of at most `threshold` of a network with its own detector.

    Of `net`, in evaluation mode, only `detect` and `classify` are called.
    """
    return search(Detecting(net), x, y, budget, how, threshold, restarts)


def selective(logits: Tensor, log_odds: Tensor, y: Tensor) -> Tensor:
    """What selective PGD ascends, [N]: the class margin until an image is misclassified, then less log-odds.

    Args:
        logits: [N,K]; y: [N]; log_odds: [N], the adversarial less the natural type logit.
    """
    distance = margin(logits, y)
    return torch.where(distance > 0, -log_odds, distance)
