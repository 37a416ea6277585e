"""Inner maximisation: makes the adversarial images of a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.ascent import Budget, ascend, cross_entropy, normal_start, project, quantise, uniform_start
from ..attacks.evasion import selective
from ..network import ADVERSARIAL, NATURAL, DetectingNetwork, Network
from ..rng import GLOBAL_RNG, Rng

STARTS = ("normal", "uniform", "n_fgsm")
Outputs = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Adversary:
    """Solves the inner maximisation of adversarial training (Eq. 1) by signed gradient ascent.

    Attributes:
        budget: radius, step and number of steps.
        start: 'normal' (0.001 times standard normal, the paper's), 'uniform' in the ball, or 'n_fgsm': noise of
            `noise_magnitude` times the radius, after which one step of `budget.step` is taken and *not* projected
            into the ball (N-FGSM, de Jorge et al. 2022; steps must be 1). The strong noise keeps one-step training
            from catastrophic overfitting.
        adv_branch_share: share of an AW-Net's batch that is attacked with BN_adv forced (P = 0) and the detector's
            gradient cut; the rest attacks the deployed network with its whole gradient. While P is near 0.5 an attack
            on the deployed network alone goes through the natural branch, and BN_adv learns nothing.
        adv_branch_sees_detector: the attacker of that share has the detector's gradient too, and steers omega with it.
            An adversarial branch that is never trained against such an attacker loses to him.
        detector_ignored_share: share of the images *outside* that share whose attacker ignores the detector's gradient
            (T1).
        evading_share: share of the batch that is attacked for a wrong class *and* a clean verdict (T3): selective PGD
            against the natural branch, at a radius and step drawn for each batch from `evading_radii` (shares of the
            budget's), because an attacker whom the detector stops at the whole radius takes a smaller one.
        noise_magnitude: k of N-FGSM, the radius of its noise in units of the budget's.
    """

    budget: Budget = Budget(steps=10)
    start: str = "normal"
    adv_branch_share: float = 0.0
    adv_branch_sees_detector: bool = False
    evading_share: float = 0.0
    evading_radii: Sequence[float] = (0.25, 0.5, 1.0)
    detector_ignored_share: float = 0.0
    noise_magnitude: float = 2.0

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"attack.start must be one of {', '.join(STARTS)}, not {self.start!r}")
        shares = (
            self.adv_branch_share,
            self.evading_share,
            self.adv_branch_share + self.evading_share,
            self.detector_ignored_share,
        )
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                "attack.adv_branch_share, attack.evading_share, their sum and attack.detector_ignored_share are shares "
                "between 0 and 1"
            )
        if not self.evading_radii or not all(0 < radius <= 1 for radius in self.evading_radii):
            raise ValueError("attack.evading_radii are shares of attack.eps, above 0 and at most 1")
        if self.start == "n_fgsm" and self.budget.steps != 1:
            raise ValueError("attack.start 'n_fgsm' is a one-step attack: attack.steps must be 1")

    def perturb(
        self, net: Network, x: Tensor, y: Tensor, target: Tensor | None = None, rng: Rng = GLOBAL_RNG
    ) -> Tensor:
        """x_adv against `net` in evaluation mode (so that the deployed network is attacked), which is then restored.

        Ascends cross-entropy with y [N], or KL(target || net(x_adv)) where probabilities `target` [N,K] are given
        (TRADES, RSLAD). A network with several exits is attacked through the mean over them.
        """
        was_training = net.training
        net.eval()
        start = self.initial(x, rng)

        def attack(part: slice, model: Outputs) -> Tensor:
            def gain(logits: Tensor) -> Tensor:
                return cross_entropy(logits, y[part]) if target is None else divergence(logits, target[part])

            def loss(z: Tensor) -> Tensor:
                gains = [gain(logits) for logits in model(z)]
                return gains[0] if len(gains) == 1 else torch.stack(gains).mean(0)

            budget, radius = self.budget, self.budget.eps
            if self.start == "n_fgsm":  # project() to a ball that holds noise and step leaves both as they are
                radius = self.noise_magnitude * budget.eps + budget.step
            return ascend(loss, x[part], start[part], Budget(min(1.0, radius), budget.step, budget.steps))

        with frozen(net):
            detecting = net.detecting
            if detecting is not None:
                n = len(x) - round(len(x) * self.evading_share)  # the last ones evade
                evading = slice(n, len(x))
                first = min(n, round(len(x) * self.adv_branch_share))  # both shares may have been rounded up
                second = first + round((n - first) * self.detector_ignored_share)
                models: tuple[tuple[slice, Outputs], ...] = (
                    (
                        slice(0, first),
                        lambda z: [
                            detecting.classify(
                                z, detecting.detect(detector_input(z, self.adv_branch_sees_detector)), "adv"
                            )
                        ],
                    ),
                    (
                        slice(first, second),
                        lambda z: [detecting.classify(z, detecting.detect(detector_input(z, False)))],
                    ),
                    (slice(second, n), lambda z: [net(z)]),
                )
                # Rounded to 8 bits like clean images: a detector in training could read the fractions of a grey level.
                made = [attack(part, model) for part, model in models if part.start < part.stop]
                if evading.start < evading.stop:
                    made.append(self.evade(detecting, x[evading], y[evading], start[evading], rng))
                x_adv = quantise(torch.cat(made))
            else:
                x_adv = attack(slice(None), net.exits)
        net.train(was_training)
        return x_adv

    def evade(self, net: DetectingNetwork, x: Tensor, y: Tensor, start: Tensor, rng: Rng) -> Tensor:
        """x_adv [N,3,H,W] of attackers at T3, from `start`; see `evading_share`."""
        share = self.evading_radii[rng.integer(0, len(self.evading_radii), "radius")]
        budget = Budget(share * self.budget.eps, share * self.budget.step, self.budget.steps)

        return ascend(lambda z: evading_gain(net, z, y), x, project(start, x, budget.eps), budget)

    def initial(self, x: Tensor, rng: Rng = GLOBAL_RNG) -> Tensor:
        """The start of the attack, shaped like x, in [0,1]."""
        if self.start == "normal":
            return normal_start(x, rng)
        return uniform_start(x, self.budget.eps * (self.noise_magnitude if self.start == "n_fgsm" else 1), rng)

    def clean_probabilities(self, net: Network, x: Tensor) -> Tensor:
        """Probabilities [N,K] of `net` in evaluation mode for natural x, mean over exits: TRADES' target."""
        was_training = net.training
        net.eval()
        with torch.no_grad():
            target = torch.stack([F.softmax(z.float(), dim=1) for z in net.exits(x)]).mean(0)
        net.train(was_training)
        return target


def evading_gain(net: DetectingNetwork, z: Tensor, y: Tensor) -> Tensor:
    """What an attacker at T3 ascends, [N]: `selective` against the natural branch, whose omega he leaves alone."""
    signals = net.detect(z)
    type_logits = signals.type_logits.float()
    log_odds = type_logits[:, ADVERSARIAL] - type_logits[:, NATURAL]
    return selective(net.classify(z, signals.detach(), "nat"), log_odds, y)


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """`net` without gradients of its weights: an attack needs none, and a compiled network would compute them."""
    weights = [p for p in net.parameters() if p.requires_grad]
    for p in weights:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in weights:
            p.requires_grad_(True)


def detector_input(z: Tensor, differentiable: bool) -> Tensor:
    """z as the detector gets it: without the attacker's gradient where not `differentiable`."""
    return z if differentiable else z.detach()


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || softmax(logits)) per image, [N]; logits [N,K], target probabilities [N,K]."""
    return F.kl_div(F.log_softmax(logits.float(), dim=1), target, reduction="none").sum(1)
