"""Objectives that learn from teachers: RSLAD from one, MTARD from two, `BoundedDistillation` from answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.rng import GLOBAL_RNG, Rng
from ..data.answers import Answers
from ..networks.awnet import AWNetConfig, bounded_mixture
from ..networks.network import Network, Signals, must_detect
from .adversary import Adversary
from .objectives import Loss, Objective, PgdAt, Step, exit_logits, exit_mean, kl_divergence, natural_images, sign_noise
from .recipe import RecipeError


class Rslad(Objective):
    """RSLAD (Zi et al. 2021): the student learns a robust teacher's logits for natural x, on x and on x_adv.

    5/6 KL(T(x) || S(x_adv)) + 1/6 KL(T(x) || S(x)), and x_adv ascends KL(T(x) || S(x_adv)): no labels anywhere.
    """

    def __init__(
        self,
        adversary: Adversary,
        teacher: nn.Module,
        adv_weight: float = 5 / 6,
        tau: float = 1.0,
        kl: str = "batchmean",
        type_weight: float = 1.0,
    ) -> None:
        self.adversary, self.adv_weight, self.tau, self.kl, self.type_weight = (
            adversary,
            adv_weight,
            tau,
            kl,
            type_weight,
        )
        self.teacher = teacher.eval().requires_grad_(False)

    def prepare(self, net: Network, x: Tensor, y: Tensor, rng: Rng = GLOBAL_RNG) -> Step:
        with torch.no_grad():
            target = self.teacher(x)
        x_adv = self.adversary.perturb(net, x, y, F.softmax(target.float() / self.tau, dim=1), rng)
        return Step(x, x_adv, y, (target,))

    def loss(self, net: Network, step: Step) -> Loss:
        pairs, kind = exit_logits(net, step)
        (target,) = step.targets
        nat = exit_mean([kl_divergence(z, target, self.tau, self.kl) for z, _ in pairs])
        adv = exit_mean([kl_divergence(z, target, self.tau, self.kl) for _, z in pairs])
        total = self.adv_weight * adv + (1 - self.adv_weight) * nat + self.type_weight * kind
        return Loss(total, {"nat": nat.detach(), "adv": adv.detach(), "type": kind.detach()})


class LossBalance:
    """MTARD's automatic balance of the two distillation losses.

    With Lhat = L / L(first step):  w_nat <- w_nat - eta * (w_nat - Lhat_nat / (Lhat_adv + Lhat_nat)),
    w_adv = 1 - w_nat; both start at 0.5. The branch that lags behind its own start gains weight.

    Attributes:
        weight, rate, start: w_nat, eta and the losses of the first step (NaN before it), float64, changed in place
            where the losses are, so that no step waits for them; as numbers they are `w_nat`, `eta` and `first`.
    """

    def __init__(self, eta: float = 0.025) -> None:
        self.weight, self.rate, self.start = (
            torch.tensor(value, dtype=torch.float64) for value in (0.5, eta, [math.nan, math.nan])
        )

    def to(self, device: torch.device) -> None:
        self.weight, self.rate, self.start = (t.to(device) for t in (self.weight, self.rate, self.start))

    @property
    def w_nat(self) -> float:
        return self.weight.item()

    @property
    def w_adv(self) -> float:
        return 1 - self.w_nat

    @property
    def eta(self) -> float:
        return self.rate.item()

    @property
    def first(self) -> tuple[float, float] | None:
        nat, adv = self.start.tolist()
        return None if math.isnan(nat) else (nat, adv)

    def set(self, w_nat: float, first: tuple[float, float] | None) -> None:
        self.weight.fill_(w_nat)
        self.start.copy_(torch.tensor(first or (math.nan, math.nan), dtype=torch.float64))

    def update(self, nat: Tensor, adv: Tensor) -> None:
        """Losses of this step, before they are weighted."""
        losses = torch.stack([nat.detach(), adv.detach()]).double()
        self.start.copy_(torch.where(self.start.isnan(), losses, self.start))
        hat = losses / self.start
        self.weight.sub_(self.rate * (self.weight - hat[0] / hat.sum()))


class Mtard(Objective):
    """Multi-teacher adversarial robustness distillation (Eq. 22-24) with automatic balance.

    `nat_teacher` teaches clean images, `adv_teacher` adversarial ones; x_adv is made with labels, as the
    published code does. An AW-Net learns each through its own branch and adds L_type, which the balance
    leaves alone; a static network learns both through one.

    Where the paper and the published code differ, or the paper is silent:

    Args:
        tau, kl, tau_squared: see `kl_divergence`; the paper's are its defaults, the code has kl = "mean".
        kl_scale: factor of both losses; the code has 10 for CIFAR-100.
        eta: of the balance; `eta_decays` multiplies it with the factor of the learning rate (the code's eta falls
            tenfold where the learning rate does).
        balance: off, both losses keep weight 0.5. The weights of a step follow its own losses, as in the published
            code; of a batch in several microbatches, the losses of the step before.
        one_batch: a static network sees both kinds of image in one batch; the code has two passes.
        nat_batch_share: share of the batch that goes through the natural branch (Eq. 22 is then the mean over those).
        sign_noise_share: share of them that get random sign noise and stay natural, as in `PgdAt`; the teacher sees the
            image without its noise.
    """

    def __init__(
        self,
        adversary: Adversary,
        nat_teacher: nn.Module,
        adv_teacher: nn.Module,
        tau: float = 1.0,
        kl: str = "batchmean",
        eta: float = 0.025,
        balance: bool = True,
        type_weight: float = 1.0,
        nat_batch_share: float = 1.0,
        sign_noise_share: float = 0.0,
        tau_squared: bool = True,
        kl_scale: float = 1.0,
        eta_decays: bool = False,
        one_batch: bool = True,
    ) -> None:
        self.adversary = adversary
        self.nat_teacher = nat_teacher.eval().requires_grad_(False)
        self.adv_teacher = adv_teacher.eval().requires_grad_(False)
        self.tau, self.kl, self.balance, self.type_weight = tau, kl, balance, type_weight
        self.nat_batch_share, self.sign_noise_share = nat_batch_share, sign_noise_share
        self.tau_squared, self.kl_scale, self.one_batch = tau_squared, kl_scale, one_batch
        self.eta, self.eta_decays = eta, eta_decays
        self.balancer = LossBalance(eta)

    def prepare(self, net: Network, x: Tensor, y: Tensor, rng: Rng = GLOBAL_RNG) -> Step:
        x_adv = self.adversary.perturb(net, x, y, rng=rng)
        x_nat = x[: natural_images(len(x), self.nat_batch_share)]
        with torch.no_grad():
            targets = self.nat_teacher(x_nat), self.adv_teacher(x_adv)
        return Step(sign_noise(x_nat, self.sign_noise_share, self.adversary.budget.eps, rng), x_adv, y, targets)

    def loss(self, net: Network, step: Step) -> Loss:
        pairs, kind = exit_logits(net, step, self.one_batch)
        nat, adv = (
            self.kl_scale
            * exit_mean([kl_divergence(pair[i], target, self.tau, self.kl, self.tau_squared) for pair in pairs])
            for i, target in enumerate(step.targets)
        )
        self.balancer.to(nat.device)
        if self.balance and self.whole_batch:
            self.balancer.update(nat, adv)
        w_nat = self.balancer.weight.clone()
        total = self.type_weight * kind + w_nat.to(nat) * nat + (1 - w_nat).to(adv) * adv
        parts = {"nat": nat.detach(), "adv": adv.detach(), "type": kind.detach(), "w_nat": w_nat}
        return Loss(total, parts)

    def set_lr_factor(self, factor: float) -> None:
        if self.eta_decays:
            self.balancer.rate.fill_(self.eta * factor)

    def end_step(self, losses: Mapping[str, Tensor]) -> None:
        # One step later than in `loss`, where the losses of the other microbatches are not known yet.
        if self.balance:
            self.balancer.update(losses["nat"], losses["adv"])

    def state_dict(self) -> dict[str, Any]:
        return {"w_nat": self.balancer.w_nat, "first": self.balancer.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.balancer.set(state["w_nat"], state["first"])

    def moving(self, device: torch.device) -> list[Tensor]:
        self.balancer.to(device)
        return [self.balancer.weight, self.balancer.start]


class BoundedDistillation(PgdAt):
    """`PgdAt` of an AW-Net with bounded mixing, whose adversarial branch learns a robust teacher's answers on x_adv.

    Both halves of `PgdAt` are kept; of the adversarial one, `distil` is KL(T(x) || z_adv(x_adv)) instead of
    cross-entropy, as RSLAD has it. T(x) are `answers` that were written down once (`data.answers`), so that no teacher
    runs; images must not be shifted then. `mixture_weight` times the cross-entropy of the deployed mixture on x_adv is
    added: what an attacker gains who has steered detector and natural branch. The natural branch's answer to x_adv is
    taken with its running statistics, which are those of natural images and stay so.
    """

    def __init__(
        self,
        adversary: Adversary,
        answers: Answers,
        distil: float = 0.8,
        mixture_weight: float = 0.5,
        label_smoothing: float = 0.0,
        nat_weight: float = 0.5,
        type_weight: float = 1.0,
        nat_eps: float = 0.0,
        nat_steps: int = 1,
        nat_perturbed_share: float = 1.0,
        corruption_share: float = 0.0,
        moved_labelled: bool = True,
    ) -> None:
        super().__init__(
            adversary,
            label_smoothing,
            nat_weight,
            type_weight,
            nat_eps,
            nat_steps,
            nat_perturbed_share,
            corruption_share=corruption_share,
            moved_labelled=moved_labelled,
        )
        self.answers, self.distil, self.mixture_weight = answers, distil, mixture_weight
        self.on_host = "objective.answers, which are looked up on the host"

    def prepare(self, net: Network, x: Tensor, y: Tensor, rng: Rng = GLOBAL_RNG) -> Step:
        try:
            answers = self.answers.to(y, rng)
        except ValueError as error:
            raise RecipeError(f"objective.answers: {error}") from error
        return super().prepare(net, x, y, rng)._replace(targets=(answers,))

    def loss(self, net: Network, step: Step) -> Loss:
        n, detecting = len(step.x), must_detect(net)
        (answers,) = step.targets
        signals = detecting.detect(torch.cat([step.x, step.x_adv]))
        of_nat, of_adv = (
            Signals(signals.type_logits[part], tuple(o[part] for o in signals.omega))
            for part in (slice(0, n), slice(n, None))
        )
        logits_nat = detecting.classify(step.x, of_nat, "nat")
        logits_adv = detecting.classify(step.x_adv, of_adv, "adv")
        nat, kind = self.cross_entropy(logits_nat, step.y), self.type_loss(signals.type_logits, n)
        told = kl_divergence(logits_adv, answers, tau=1.0)
        adv = self.distil * told + (1 - self.distil) * self.cross_entropy(logits_adv, step.y)
        net.eval()
        seen_by_nat = detecting.classify(step.x_adv, of_adv, "nat")
        net.train()
        config = cast(AWNetConfig, detecting.config)  # mixing is an AW-Net's
        limit, temperature = config.mixing_limit, config.mixing_temperature
        mixture = bounded_mixture(logits_adv, seen_by_nat, of_adv.type_logits, limit, temperature)
        deployed = F.nll_loss(mixture, step.y)
        total = self.type_weight * kind + 2 * (self.nat_weight * nat + (1 - self.nat_weight) * adv)
        terms = {"nat": nat.detach(), "adv": adv.detach(), "type": kind.detach(), "mixture": deployed.detach()}
        return Loss(total + self.mixture_weight * deployed, terms)
