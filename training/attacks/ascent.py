"""What every attack is made of: budgets, losses, projections, starts, and projected gradient ascent.

`model` is any callable from pixels [N,3,H,W] in [0,1] to logits [N,K]; it must already be in evaluation mode. Every
attack's result lies in the L-infinity ball of `budget.eps` around x and in [0,1], and is detached.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.rng import GLOBAL_RNG, Rng

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Budget:
    """Budget of an attack: L-infinity radius and step size in pixel units of [0,1], gradient steps, restarts.

    Only `pgd_restarts` and `worst_case` use `restarts`.
    """

    eps: float = 8 / 255
    step: float = 2 / 255
    steps: int = 20
    restarts: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.eps <= 1 and self.step > 0 and self.steps >= 1 and self.restarts >= 1):
            raise ValueError(f"a budget needs 0 < eps <= 1, step > 0, steps >= 1 and restarts >= 1, not {self}")


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per image, [N]."""
    return F.cross_entropy(logits.float(), y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Best other logit minus the true one, [N]; positive means misclassified."""
    logits = logits.float()
    true = logits.gather(1, y[:, None]).squeeze(1)
    other = logits.scatter(1, y[:, None], float("-inf")).amax(1)
    return other - true


def project(x_adv: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
    """Into the ball of radius eps (one for all, or [N,1,1,1]) around x, and into [0,1]."""
    return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)


def uniform_start(x: Tensor, eps: float, rng: Rng = GLOBAL_RNG, purpose: str = "start") -> Tensor:
    """x plus uniform noise in (-eps, eps), in [0,1]."""
    return (x + rng.uniform(x, -eps, eps, purpose)).clamp(0, 1)


def normal_start(x: Tensor, rng: Rng = GLOBAL_RNG, purpose: str = "start") -> Tensor:
    """x plus 0.001 times standard normal noise, in [0,1]."""
    return (x + 0.001 * rng.normal(x, purpose)).clamp(0, 1)


def ascend(loss: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, budget: Budget) -> Tensor:
    """Projected signed gradient ascent of `loss` (x_adv -> [N]) from `start`; the core of every attack here."""
    return ascend_within(loss, x, start, budget.eps, budget.step, budget.steps)


def ascend_within(
    loss: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, eps: float | Tensor, step: float | Tensor, steps: int
) -> Tensor:
    """`ascend` where each image may have a radius and a step of its own: [N,1,1,1]."""
    x_adv = start.detach()
    for _ in range(steps):
        x_adv.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(x_adv).sum(), x_adv)
        x_adv = project(x_adv.detach() + step * gradient.sign(), x, eps)
    return x_adv.detach()


def norm(delta: Tensor) -> Tensor:
    """Euclidean norm of each image [n,C,H,W], [n,1,1,1]."""
    length: Tensor = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
    return length


def normalised(gradient: Tensor) -> Tensor:
    """Each image's gradient [n,C,H,W] with L2 norm 1; zero where it is zero."""
    return gradient / norm(gradient).clamp(min=1e-30)


def quantise(x_adv: Tensor) -> Tensor:
    """Rounded to the 8 bits that a file can hold; a point of the ball around 8-bit x stays in it (`whole_levels`)."""
    return (x_adv * 255).round() / 255


def whole_levels(eps: float) -> float:
    """eps rounded down to whole grey levels: rounding to 8 bits then leaves no ball around an 8-bit image.

    Raises:
        ValueError: it is under one level.
    """
    if (levels := math.floor(eps * 255 + 1e-6)) == 0:
        raise ValueError("an attack on 8-bit images needs eps of at least 1/255: a smaller ball holds no other image")
    return levels / 255
