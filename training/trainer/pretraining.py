"""The objective of the detection stage: the detector alone is trained, against adversarial images of a fixed trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.ascent import Budget, ascend, cross_entropy, normal_start, quantise, uniform_start
from ..core.rng import GLOBAL_RNG, Rng
from ..networks.network import Network, must_detect
from .adversary import Adversary, evading_gain
from .objectives import Loss, Objective, Step, corrupted, sign_noise, type_loss

T = TypeVar("T")


ATTACKERS = ("nat", "adv", "detector_ignored", "deployed", "evading", "transferred")


class DetectorPretraining(Objective):
    """Stages A, C and E: extractor and type head learn to tell adversarial examples of the trunk from natural images.

    The trunk stands still. Each step draws its attacker from `attackers`, its radius from `eps` (units of
    1/255), so that weak examples are learnt too, its step size between a quarter of that radius and all of it, its
    start, and 1 to 2 `steps` - 1 steps. Attackers: 'nat' and 'adv' have that branch alone, with the omega of the
    clean image; 'detector_ignored' has the deployed network without the detector's gradient (T1), 'deployed' with it
    (T2); 'evading' wants the verdict clean as well (T3), see `Adversary.evading_share`; 'transferred' has another
    network, drawn from `surrogates` (T0).

    Two kinds of natural images are no images of the training set, and *natural* all the same: without them, the
    detector flags whatever is not pristine. `sign_noise_share` is the share of them that get random sign noise of the
    drawn radius, `corruption_share` of those that get an honest corruption each, see `objectives.corrupted`.

    Where the trunk's `signal_heads` are not frozen, `signals_weight` times the mean squared error of omega, on both
    kinds of image, to that of `signals_teacher` is added: a trunk that stands still goes on being steered as it was
    trained to be, by whatever features the detector finds, also by another extractor's.
    """

    on_host = "objective.name 'detector', which draws another attack for each step"

    def __init__(
        self,
        adversary: Adversary,
        eps: Sequence[float] = (8.0,),
        sign_noise_share: float = 0.0,
        attackers: Sequence[str] = ("nat",),
        corruption_share: float = 0.0,
        surrogates: Sequence[Network] = (),
        signals_weight: float = 0.0,
        signals_teacher: Network | None = None,
    ) -> None:
        unknown = set(attackers) - set(ATTACKERS)
        if unknown or not attackers:
            raise TypeError(f"attackers are {', '.join(ATTACKERS)}, not {sorted(unknown)}")
        if ("transferred" in attackers) != bool(surrogates):
            raise TypeError("attackers 'transferred' and surrogates need each other")
        if bool(signals_weight) != (signals_teacher is not None):
            raise TypeError("signals_weight and signals_teacher need each other")
        if sign_noise_share + corruption_share > 1:
            raise TypeError("sign_noise_share and corruption_share are of the same images: their sum is 1 at most")
        self.adversary, self.eps, self.sign_noise_share, self.attackers = adversary, eps, sign_noise_share, attackers
        self.corruption_share, self.signals_weight = corruption_share, signals_weight
        self.surrogates = [net.eval().requires_grad_(False) for net in surrogates]
        self.signals_teacher = (
            None if signals_teacher is None else must_detect(signals_teacher.eval().requires_grad_(False))
        )

    def prepare(self, net: Network, x: Tensor, y: Tensor, rng: Rng = GLOBAL_RNG) -> Step:
        detecting = must_detect(net)
        eps = _draw(self.eps, rng, "radius") / 255
        steps = rng.integer(1, 2 * self.adversary.budget.steps, "steps")
        step = eps * (1.0 if steps == 1 else rng.number(max(0.25, 1 / steps), 1, "step"))
        attacker = _draw(self.attackers, rng, "attacker")
        surrogate = _draw(self.surrogates, rng, "surrogate") if attacker == "transferred" else net
        net.eval()
        model = self.adversary.attacked(detecting)
        with torch.no_grad():
            signals = model.detect(x)

        def gain(z: Tensor) -> Tensor:
            match attacker:
                case "evading":
                    return evading_gain(model, z, y)
                case "transferred":
                    logits: Tensor = surrogate(z)
                case "deployed":
                    logits = model.classify(z, model.detect(z))
                case "detector_ignored":
                    logits = model.classify(z, model.detect(z.detach()))
                case branch:
                    logits = model.classify(z, signals, "adv" if branch == "adv" else "nat")
            return cross_entropy(logits, y)

        start = normal_start(x, rng) if rng.number(0, 1, "start") < 0.5 else uniform_start(x, eps, rng)
        x_adv = quantise(ascend(gain, x, start, Budget(eps, step, steps)))
        net.train()
        x_nat = corrupted(sign_noise(x, self.sign_noise_share, eps, rng), self.corruption_share, rng)
        if self.signals_teacher is None:
            return Step(x_nat, x_adv, y)
        with torch.no_grad():
            return Step(x_nat, x_adv, y, self.signals_teacher.detect(torch.cat([x_nat, x_adv])).omega)

    def loss(self, net: Network, step: Step) -> Loss:
        both, n = torch.cat([step.x, step.x_adv]), len(step.x)
        if self.signals_teacher is None:
            loss = type_loss(must_detect(net).type_logits(both), n)
            return Loss(loss, {"type": loss.detach()})
        signals = must_detect(net).detect(both)
        kind = type_loss(signals.type_logits, n)
        errors = [
            F.mse_loss(omega.float(), was.float()) for omega, was in zip(signals.omega, step.targets, strict=True)
        ]
        drift = torch.stack(errors).mean()
        return Loss(kind + self.signals_weight * drift, {"type": kind.detach(), "signals": drift.detach()})


def _draw(choices: Sequence[T], rng: Rng, purpose: str) -> T:
    return choices[rng.integer(0, len(choices), purpose)]
