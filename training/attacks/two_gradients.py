"""Evasion by two gradients, one of the class and one of the score, which are combined after both were taken."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..networks.network import Branch
from .ascent import Budget, cross_entropy, margin, normalised, project, uniform_start, whole_levels
from .search import Seen, Walk


@dataclass(frozen=True)
class TwoGradients:
    """A strategy that weighs two gradients of L2 norm 1, of the class margin and of the type margin, for each image.

    The weight moves towards the class while an image is classified rightly and towards the score while it is
    flagged; of either norm alone, whichever loss is steeper would win. Signed steps with momentum shrink geometrically
    from `budget.step`, or half the radius where that is less, to `last_step`. They lead from a point with fractions
    of grey levels, while both gradients are taken at the 8-bit image nearest to it.

    Attributes:
        branch: as in `evasion.Evasion`; of AW-Net's gradients of the class, the natural branch's helps most.
        aim: the wrong class wanted is the true one plus this, modulo K; None is any.
        momentum: share of the last velocity in the next one.
        last_step: size of the last step, in pixel values of [0,1].
        lean: log-odds of the class against the score at the start; `rate`: their change a step; `limit`: their bound.
    """

    branch: Branch | None = None
    aim: int | None = None
    steps: int = 80
    momentum: float = 0.75
    last_step: float = 0.25 / 255
    lean: float = -1.0
    rate: float = 0.2
    limit: float = 3.0

    def start(self, x: Tensor, budget: Budget, first: bool) -> Tensor:
        return x if first else uniform_start(x, whole_levels(budget.eps))

    def step(self, i: int, walk: Walk, z: Tensor, seen: Seen, x: Tensor, y: Tensor, budget: Budget) -> Walk:
        of_class, of_score = gradients(self.distance(seen.attacked, y), seen, z)
        wrong, radius = seen.logits.argmax(1) != y, whole_levels(budget.eps)
        lean = (walk.lean + torch.where(wrong, -self.rate, self.rate)).clamp(-self.limit, self.limit)
        share = torch.sigmoid(lean + self.lean)[:, None, None, None]
        velocity = self.momentum * walk.velocity + share * normalised(of_class) + (1 - share) * normalised(of_score)
        first = min(budget.step, radius / 2)
        size = first * (self.last_step / first) ** (i / max(1, budget.steps - 1))
        return Walk(project(walk.at + size * velocity.sign(), x, radius), velocity, lean)

    def distance(self, logits: Tensor, y: Tensor) -> Tensor:
        """What the gradient of the class is of, [n]."""
        if self.aim is None:
            return margin(logits, y)
        aim = (y + self.aim) % logits.shape[1]
        return (logits.gather(1, aim[:, None]) - logits.gather(1, y[:, None])).squeeze(1).float()


@dataclass(frozen=True)
class Orthogonal:
    """Orthogonal PGD of Bryniarski et al. (arXiv 2106.15023): one of the two gradients, less its part along the other.

    The gradient of cross-entropy until an image is misclassified, of the log-odds of the score from there on, so that
    a step for one leaves the other as it is to first order. Without the projection it is their selective PGD. Steps of
    one grey level from x, as in their code; each image's best iterate is kept there too. Theirs is written for a
    target class or none, and a detector that is a real number: none here, and the log-odds.
    """

    projected: bool = True
    branch: Branch | None = None
    steps: int = 100

    def start(self, x: Tensor, budget: Budget, first: bool) -> Tensor:
        return x if first else uniform_start(x, whole_levels(budget.eps))

    def step(self, i: int, walk: Walk, z: Tensor, seen: Seen, x: Tensor, y: Tensor, budget: Budget) -> Walk:
        of_class, of_score = gradients(cross_entropy(seen.attacked, y), seen, z)
        if self.projected:
            of_class, of_score = without(of_class, of_score), without(of_score, of_class)
        wrong = (seen.logits.argmax(1) != y)[:, None, None, None]
        gradient = torch.where(wrong, of_score, of_class)
        return walk._replace(at=project(z.detach() + gradient.sign() / 255, x, whole_levels(budget.eps)))


def gradients(of_class: Tensor, seen: Seen, z: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients [n,3,H,W] at z of a loss of the class [n], and of less log-odds of the score; both are ascended."""
    (first,) = torch.autograd.grad(of_class.sum(), z, retain_graph=True)
    (second,) = torch.autograd.grad(-seen.log_odds.sum(), z)
    return first, second


def without(gradient: Tensor, other: Tensor) -> Tensor:
    """The part of `gradient` [n,3,H,W] that is orthogonal to `other`, image by image."""
    unit = normalised(other)
    along = (gradient * unit).flatten(1).sum(1)[:, None, None, None]
    return gradient - along * unit
