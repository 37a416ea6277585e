"""Attacks, as small functions `(model, x, y, budget) -> x_adv`.

`model` is any callable from pixels [N,3,H,W] in [0,1] to logits [N,K]; it must already be in evaluation
mode. Every result lies in the L-infinity ball of `budget.eps` around x and in [0,1], and is detached.
Conventions are those of the paper's sec. 5.3 and the code it builds on: PGD_sat starts uniformly in the
ball (Madry), PGD_trades at 0.001 times a standard normal (TRADES), CW_inf is PGD on the margin.

The second half is threat level T3, an attacker who wants a wrong class *and* a clean verdict: `evade`, with
the table `EVASIONS` of its variants.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import Branch, DetectingNetwork
from .rng import GLOBAL_RNG, Rng

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Budget:
    """Budget of an attack: L-infinity radius and step size in pixel units of [0,1], gradient steps, restarts.

    Only `pgd_restarts` uses `restarts`.
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


def project(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """Into the ball of radius eps around x, and into [0,1]."""
    return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)


def uniform_start(x: Tensor, eps: float, rng: Rng = GLOBAL_RNG, purpose: str = "start") -> Tensor:
    """x plus uniform noise in (-eps, eps), in [0,1]."""
    return (x + rng.uniform(x, -eps, eps, purpose)).clamp(0, 1)


def normal_start(x: Tensor, rng: Rng = GLOBAL_RNG, purpose: str = "start") -> Tensor:
    """x plus 0.001 times standard normal noise, in [0,1]."""
    return (x + 0.001 * rng.normal(x, purpose)).clamp(0, 1)


def ascend(loss: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, budget: Budget) -> Tensor:
    """Projected signed gradient ascent of `loss` (x_adv -> [N]) from `start`; the core of every attack here."""
    x_adv = start.detach()
    for _ in range(budget.steps):
        x_adv.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(x_adv).sum(), x_adv)
        x_adv = project(x_adv.detach() + budget.step * gradient.sign(), x, budget.eps)
    return x_adv.detach()


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
    """`pgd_sat` from `budget.restarts` starts; of each image's ends the one with the largest margin is kept."""
    best, reached = x.clone(), torch.full((len(x),), -math.inf, device=x.device)
    for _ in range(budget.restarts):
        x_adv = pgd_sat(model, x, y, budget)
        with torch.no_grad():
            distance = margin(model(x_adv), y)
        better = distance > reached
        best[better], reached[better] = x_adv[better], distance[better]
    return best


def adaptive(model: Model, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """The paper's adaptive attack (sec. 5.9): `pgd_trades` on the whole training loss instead of cross-entropy.

    Its "Eq. (14)" is read as Eq. 24 with the true label: cross-entropy of the class plus L_type of an adversarial
    image, so that the attack also gains from the detector's error. L_nat does not depend on x_adv. `model` says both
    where it has `with_type`, x -> (logits [N,K], type logits [N,2], the first adversarial); one that detects
    nothing is attacked by `pgd_trades`. An attacker who wants to evade, `evade` below, is stronger.
    """
    with_type = getattr(model, "with_type", None)

    def loss(z: Tensor) -> Tensor:
        if with_type is None:
            return cross_entropy(model(z), y)
        logits, type_logits = with_type(z)
        return cross_entropy(logits, y) + cross_entropy(type_logits, torch.zeros_like(y))

    return ascend(loss, x, normal_start(x), budget)


def autoattack(model: Model, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """AutoAttack, standard version (Croce and Hein 2020), by the package pyautoattack: APGD-CE, APGD-T, FAB-T, Square.

    It is the standard one with 100 `budget.steps`; another number takes as many iterations, and 50 times as many
    queries for Square. At most nine target classes, fewer where there are fewer classes (four at least). Images
    that resist come back as they are. The step size is not used.
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise ValueError("AutoAttack needs the package pyautoattack: pip install pyautoattack") from error
    with torch.no_grad():
        targets = min(9, model(x[:1]).shape[1] - 1)
    if targets < 3:
        raise ValueError("AutoAttack needs four classes at least: its DLR loss compares the four highest logits")
    seed = int(torch.randint(2**31, ()))
    attack = AutoAttack(_Module(model), eps=budget.eps, norm="Linf", seed=seed, version="standard", device=x.device)
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = budget.steps
    attack.square.n_queries = 50 * budget.steps
    state = torch.get_rng_state()  # it seeds the global generator anew for each of its attacks
    weights = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    try:
        for p in weights:  # FAB calls backward(), which would leave gradients in them
            p.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x_adv, _ = attack.run_standard_evaluation(x.contiguous(), y, batch_size=len(x))
    finally:
        for p in weights:
            p.requires_grad_(True)
        torch.set_rng_state(state)
    return project(x_adv.detach(), x, budget.eps)


class _Module(nn.Module):
    """Any model as a module, which is what AutoAttack takes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = [model]  # in a list, so that its parameters are not registered here

    def forward(self, x: Tensor) -> Tensor:
        return self.model[0](x)


Attack = Callable[[Model, Tensor, Tensor, Budget], Tensor]

# name -> (attack, its budget: the paper's in sec. 5.3 for the first four and the adaptive one)
ATTACKS: dict[str, tuple[Attack, Budget]] = {
    "fgsm": (fgsm, Budget(steps=1, step=8 / 255)),
    "pgd_sat": (pgd_sat, Budget(steps=20)),
    "pgd_trades": (pgd_trades, Budget(steps=20)),
    "cw_inf": (cw_inf, Budget(steps=30)),
    "adaptive": (adaptive, Budget(steps=20)),
    "pgd_restarts": (pgd_restarts, Budget(steps=50, restarts=10)),
    "autoattack": (autoattack, Budget(steps=100)),
}


def quantise(x_adv: Tensor) -> Tensor:
    """Rounded to the 8 bits that a file can hold; a point of the ball around 8-bit x stays in it."""
    return (x_adv * 255).round() / 255


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
