"""The objective of the detection stage: the detector alone is trained, against adversarial images of a fixed trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..attacks.ascent import Budget, ascend, cross_entropy, normal_start, quantise, uniform_start
from ..network import Network, must_detect
from ..rng import GLOBAL_RNG, Rng
from .adversary import Adversary
from .objectives import Loss, Objective, Step, sign_noise, type_loss

T = TypeVar("T")


class DetectorPretraining(Objective):
    """Stages A and C: extractor and type head learn to tell adversarial examples of the trunk from clean images.

    The trunk stands still. Each step draws its attacker from `attackers`, its radius from `eps` (units of
    1/255), so that weak examples are learnt too, its step size between a quarter of that radius and all of it, its
    start, and 1 to 2 `steps` - 1 steps. Attackers: 'nat' and 'adv' have that branch alone, with the omega of the
    clean image; 'detector_ignored' has the deployed network without the detector's gradient (T1), 'deployed' with it
    (T2).
    `sign_noise_share` is the share of clean images that get random sign noise of the drawn radius and stay *natural*:
    without it, the detector flags any noise.
    """

    def __init__(
        self,
        adversary: Adversary,
        eps: Sequence[float] = (8.0,),
        sign_noise_share: float = 0.0,
        attackers: Sequence[str] = ("nat",),
    ) -> None:
        unknown = set(attackers) - {"nat", "adv", "detector_ignored", "deployed"}
        if unknown or not attackers:
            raise TypeError(f"attackers are nat, adv, detector_ignored and deployed, not {sorted(unknown)}")
        self.adversary, self.eps, self.sign_noise_share, self.attackers = adversary, eps, sign_noise_share, attackers

    def prepare(self, net: Network, x: Tensor, y: Tensor, rng: Rng = GLOBAL_RNG) -> Step:
        detecting = must_detect(net)
        eps = _draw(self.eps, rng, "radius") / 255
        steps = rng.integer(1, 2 * self.adversary.budget.steps, "steps")
        step = eps * (1.0 if steps == 1 else rng.number(max(0.25, 1 / steps), 1, "step"))
        attacker = _draw(self.attackers, rng, "attacker")
        net.eval()
        with torch.no_grad():
            signals = detecting.detect(x)

        def model(z: Tensor) -> Tensor:
            if attacker == "deployed":
                logits: Tensor = detecting(z)
                return logits
            if attacker == "detector_ignored":
                return detecting.classify(z, detecting.detect(z.detach()))
            return detecting.classify(z, signals, "adv" if attacker == "adv" else "nat")

        start = normal_start(x, rng) if rng.number(0, 1, "start") < 0.5 else uniform_start(x, eps, rng)
        x_adv = quantise(ascend(lambda z: cross_entropy(model(z), y), x, start, Budget(eps, step, steps)))
        net.train()
        return Step(sign_noise(x, self.sign_noise_share, eps, rng), x_adv, y)

    def loss(self, net: Network, step: Step) -> Loss:
        loss = type_loss(must_detect(net).type_logits(torch.cat([step.x, step.x_adv])), len(step.x))
        return Loss(loss, {"type": loss.item()})


def _draw(choices: Sequence[T], rng: Rng, purpose: str) -> T:
    return choices[rng.integer(0, len(choices), purpose)]
