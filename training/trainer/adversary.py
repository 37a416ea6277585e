"""Inner maximisation: makes the adversarial images of a training step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.ascent import Budget, ascend_within, cross_entropy, normal_start, project, quantise, uniform_start
from ..attacks.evasion import selective
from ..core.rng import GLOBAL_RNG, Rng
from ..networks.folded import InParts, StillNetwork, still
from ..networks.network import ADVERSARIAL, NATURAL, Branch, DetectingNetwork, Network, Signals

STARTS = ("normal", "uniform", "n_fgsm")


class Attacker(NamedTuple):
    """Who attacks some consecutive images of a batch."""

    rows: slice
    branch: Branch | None  # that answers him; None is the deployed network's answer
    sees_detector: bool  # he has the detector's gradient
    evades: bool = False  # he wants a clean verdict too; omega is held, of the detector he follows the verdict


def under_attack(net: StillNetwork, z: Tensor, attackers: Sequence[Attacker]) -> tuple[Tensor, Tensor]:
    """(logits [N,K], log-odds [N] of the adversarial type) of z [N,3,H,W] with the gradients that each attacker has.

    The detector runs once for neighbours who all have its gradient, or all have not: it is computed where it is used.
    """
    seen = []
    for sees, group in itertools.groupby(attackers, key=lambda one: one.sees_detector):
        members = list(group)
        with torch.set_grad_enabled(sees):
            seen.append(net.detect(z[members[0].rows.start : members[-1].rows.stop]))
    signals = seen[0] if len(seen) == 1 else Signals.joined(seen)
    if attackers[-1].evades:
        n = attackers[-1].rows.start
        signals = signals._replace(omega=tuple(torch.cat([o[:n], o[n:].detach()]) for o in signals.omega))
    type_logits = signals.type_logits.float()
    logits = net.classify_parts(z, signals, [(one.rows, one.branch) for one in attackers])
    return logits, type_logits[:, ADVERSARIAL] - type_logits[:, NATURAL]


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
        folded: an AW-Net is attacked as `folded.Folded`, all attackers of a batch in one forward; off, each in one of
            his own by the network's own methods, which alone are compiled. The same but for rounding.
    """

    budget: Budget = Budget(steps=10)
    start: str = "normal"
    adv_branch_share: float = 0.0
    adv_branch_sees_detector: bool = False
    evading_share: float = 0.0
    evading_radii: Sequence[float] = (0.25, 0.5, 1.0)
    detector_ignored_share: float = 0.0
    noise_magnitude: float = 2.0
    folded: bool = True

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
        eps: float | Tensor = self.budget.eps
        step: float | Tensor = self.budget.step
        if self.start == "n_fgsm":  # project() to a ball that holds noise and step leaves both as they are
            eps = min(1.0, self.noise_magnitude * self.budget.eps + self.budget.step)

        def gain(logits: Tensor) -> Tensor:
            return cross_entropy(logits, y) if target is None else divergence(logits, target)

        def exits_loss(z: Tensor) -> Tensor:
            gains = [gain(logits) for logits in net.exits(z)]
            return gains[0] if len(gains) == 1 else torch.stack(gains).mean(0)

        with frozen(net):
            if (detecting := net.detecting) is None:
                x_adv = ascend_within(exits_loss, x, start, eps, step, self.budget.steps)
            else:
                attackers, model = self.attackers(len(x)), self.attacked(detecting)
                n = attackers[-1].rows.start if attackers[-1].evades else len(x)
                if n < len(x):
                    share = rng.choice(self.evading_radii, "radius")
                    evading = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1) >= n
                    eps = torch.where(evading, share * self.budget.eps, eps)
                    step = torch.where(evading, share * self.budget.step, step)
                    start = project(start, x, torch.where(evading, eps, 1.0))

                def loss(z: Tensor) -> Tensor:
                    logits, log_odds = under_attack(model, z, attackers)
                    gains = gain(logits)
                    return torch.cat([gains[:n], selective(logits[n:], log_odds[n:], y[n:])]) if n < len(x) else gains

                # Rounded to 8 bits like clean images: a detector in training could read the fractions of a grey level.
                x_adv = quantise(ascend_within(loss, x, start, eps, step, self.budget.steps))
        net.train(was_training)
        return x_adv

    def attackers(self, n: int) -> list[Attacker]:
        """Who attacks which of a batch's n images; none of them has no image."""
        white = n - round(n * self.evading_share)  # the last ones evade
        first = min(white, round(n * self.adv_branch_share))  # both shares may have been rounded up
        second = first + round((white - first) * self.detector_ignored_share)
        everyone = (
            Attacker(slice(0, first), "adv", self.adv_branch_sees_detector),
            Attacker(slice(first, second), None, False),
            Attacker(slice(second, white), None, True),
            Attacker(slice(white, n), "nat", True, evades=True),
        )
        return [one for one in everyone if one.rows.start < one.rows.stop]

    def attacked(self, net: DetectingNetwork) -> StillNetwork:
        """`net`, in evaluation, as its attackers differentiate it."""
        return still(net) if self.folded else InParts(net)

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


def evading_gain(net: StillNetwork, z: Tensor, y: Tensor) -> Tensor:
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


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || softmax(logits)) per image, [N]; logits [N,K], target probabilities [N,K]."""
    return F.kl_div(F.log_softmax(logits.float(), dim=1), target, reduction="none").sum(1)
