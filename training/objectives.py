"""What is minimised, and how the adversarial images of a training step are made.

An objective is called once a step, `objective(net, x, y)`, on x [N,3,H,W] in [0,1] and y [N], with the
network in training mode; it makes its own adversarial images and returns the loss to minimise with its
parts. It never updates weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.attacks import Budget, ascend, cross_entropy, normal_start, quantise, uniform_start
from training.awnet import ADVERSARIAL, NATURAL, AWNet


@dataclass
class Loss:
    """`total` to minimise, and what to log."""

    total: Tensor
    parts: dict[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """See the module's docstring; the state is what a resumed run needs beyond weights and optimiser."""

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Loss: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stateless:
    """An objective that a resumed run needs nothing of."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class Inner:
    """How x_adv is made in training.

    Attributes:
        budget: radius, step and number of steps.
        start: 'normal' (0.001 times standard normal, the paper's) or 'uniform' in the ball.
        forced: share of an AW-Net's batch that is attacked with BN_adv forced (P = 0) and the detector's
            gradient cut; the rest attacks the deployed network with its whole gradient. While P is near 0.5
            an attack on the deployed network alone goes through the clean branch and BN_adv learns nothing.
        detached: share of the *unforced* images whose attacker ignores the detector's gradient (T1) instead.
    """

    budget: Budget = Budget(steps=10)
    start: str = "normal"
    forced: float = 0.0
    detached: float = 0.0

    def __post_init__(self) -> None:
        if self.start not in ("normal", "uniform"):
            raise ValueError(f"attack.start must be 'normal' or 'uniform', not {self.start!r}")
        if not (0 <= self.forced <= 1 and 0 <= self.detached <= 1):
            raise ValueError("attack.forced and attack.detached are shares between 0 and 1")

    def adversaries(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x_adv against `net` in evaluation mode (so that the deployed network is attacked), which is then restored."""
        was_training = net.training
        net.eval()
        start = normal_start(x) if self.start == "normal" else uniform_start(x, self.budget.eps)

        def attack(part: slice, model: Any) -> Tensor:
            return ascend(lambda z: cross_entropy(model(z), y[part]), x[part], start[part], self.budget)

        if isinstance(net, AWNet):
            n = len(x)
            first = round(n * self.forced)
            second = first + round((n - first) * self.detached)
            models = (
                (slice(0, first), lambda z: net.classify(z, net.detect(z.detach()), "adv")),
                (slice(first, second), lambda z: net.classify(z, net.detect(z.detach()))),
                (slice(second, n), net),
            )
            # Rounded to 8 bits like clean images: a detector in training could read the fractions of a grey level.
            x_adv = quantise(torch.cat([attack(part, model) for part, model in models if part.start < part.stop]))
        else:
            x_adv = attack(slice(None), net)
        net.train(was_training)
        return x_adv


def branches(net: AWNet, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Natural logits, adversarial logits (each [N,K], Eq. 15) and type logits [n+N,2] of a step with n natural images.

    The detector sees both kinds in one batch: in separate batches its batch statistics would tell it the
    answer. The trunk sees them apart, each kind through its own batch norms.
    """
    n = len(x)
    signals = net.detect(torch.cat([x, x_adv]))
    nat = signals._replace(omega=tuple(o[:n] for o in signals.omega))
    adv = signals._replace(omega=tuple(o[n:] for o in signals.omega))
    return net.classify(x, nat, "nat"), net.classify(x_adv, adv, "adv"), signals.type_logits


def type_loss(type_logits: Tensor, n: int) -> Tensor:
    """L_type of Eq. 24: cross-entropy, mean over n natural images followed by the adversarial ones."""
    kind = torch.full((len(type_logits),), ADVERSARIAL, device=type_logits.device)
    kind[:n] = NATURAL
    return F.cross_entropy(type_logits.float(), kind)


class Standard(Stateless):
    """Cross-entropy on clean images (a static network)."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Loss:
        loss = F.cross_entropy(net(x).float(), y, label_smoothing=self.label_smoothing)
        return Loss(loss, {"nat": loss.item()})


class PgdAt(Stateless):
    """Adversarial training (Madry et al.) with labels.

    A static network minimises cross-entropy on x_adv. An AW-Net minimises it on x through BN_nat and on
    x_adv through BN_adv, `nat_weight` to 1 - `nat_weight`, plus L_type.

    `nat_eps` > 0 trains a natural branch that is itself partly robust: x is first moved by `nat_steps`
    signed steps inside a ball of `nat_eps` (pixel units of 1/255) against that branch; `nat_share` of the
    images are moved. `nat_images` is the share of the batch that goes through the natural branch at all: a
    trunk that starts clean-trained needs less of it than of the adversarial one. `noise` is the share of
    natural images that get random sign noise and stay natural, as in `DetectorPretraining`.
    """

    def __init__(
        self,
        inner: Inner,
        label_smoothing: float = 0.0,
        nat_weight: float = 0.5,
        type_weight: float = 1.0,
        nat_eps: float = 0.0,
        nat_steps: int = 1,
        nat_share: float = 1.0,
        nat_images: float = 1.0,
        noise: float = 0.0,
    ) -> None:
        self.inner = inner
        self.label_smoothing = label_smoothing
        self.nat_weight = nat_weight
        self.type_weight = type_weight
        self.nat_eps = nat_eps / 255
        self.nat_steps = nat_steps
        self.nat_share = nat_share
        self.nat_images = nat_images
        self.noise = noise

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Loss:
        x_adv = self.inner.adversaries(net, x, y)
        if not isinstance(net, AWNet):
            loss = F.cross_entropy(net(x_adv).float(), y, label_smoothing=self.label_smoothing)
            return Loss(loss, {"adv": loss.item()})
        n = max(2, round(len(x) * self.nat_images))
        logits_nat, logits_adv, type_logits = branches(
            net, sign_noise(self.natural(net, x[:n], y[:n]), self.noise, self.inner.budget.eps), x_adv
        )
        nat = F.cross_entropy(logits_nat.float(), y[:n], label_smoothing=self.label_smoothing)
        adv = F.cross_entropy(logits_adv.float(), y, label_smoothing=self.label_smoothing)
        kind = type_loss(type_logits, n)
        total = self.type_weight * kind + 2 * (self.nat_weight * nat + (1 - self.nat_weight) * adv)
        return Loss(total, {"nat": nat.item(), "adv": adv.item(), "type": kind.item()})

    def natural(self, net: AWNet, x: Tensor, y: Tensor) -> Tensor:
        """x as the natural branch is to learn it: x itself, or slightly perturbed against that branch."""
        if not self.nat_eps:
            return x
        part = slice(0, round(len(x) * self.nat_share))
        net.eval()
        signals = net.detect(x[part]).detach()
        budget = Budget(
            self.nat_eps, self.nat_eps * (1.25 if self.nat_steps == 1 else 2 / self.nat_steps), self.nat_steps
        )
        start = uniform_start(x[part], self.nat_eps)
        moved = ascend(lambda z: cross_entropy(net.classify(z, signals, "nat"), y[part]), x[part], start, budget)
        net.train()
        return torch.cat([moved, x[part.stop :]])


def kl_divergence(student: Tensor, teacher: Tensor, tau: float, reduction: str = "batchmean") -> Tensor:
    """tau^2 KL(teacher^tau || student^tau) of logits [N,K] (Eq. 22-23).

    reduction 'batchmean' is the paper's; 'mean' also averages over classes, as the published MTARD code
    does with tau = 1 (it adds 1e-5 inside the logarithm of the teacher; so does this variant).
    """
    log_student = F.log_softmax(student.float() / tau, dim=1)
    target = F.softmax(teacher.float() / tau, dim=1)
    if reduction == "batchmean":
        return tau**2 * F.kl_div(log_student, target, reduction="batchmean")
    if reduction == "mean":
        return tau**2 * (target * ((target + 1e-5).log() - log_student)).mean()
    raise ValueError(f"kl must be 'batchmean' or 'mean', not {reduction!r}")


class Balancer:
    """MTARD's automatic balance of the two distillation losses.

    With Lhat = L / L(first step):  w_nat <- w_nat - eta * (w_nat - Lhat_nat / (Lhat_adv + Lhat_nat)),
    w_adv = 1 - w_nat; both start at 0.5. The branch that lags behind its own start gains weight.
    """

    def __init__(self, eta: float = 0.025) -> None:
        self.eta = eta
        self.w_nat = 0.5
        self.first: tuple[float, float] | None = None

    @property
    def w_adv(self) -> float:
        return 1 - self.w_nat

    def update(self, nat: float, adv: float) -> None:
        """Losses of this step, before they are weighted."""
        if self.first is None:
            self.first = (nat, adv)
        hat_nat, hat_adv = nat / self.first[0], adv / self.first[1]
        self.w_nat -= self.eta * (self.w_nat - hat_nat / (hat_adv + hat_nat))


class Mtard:
    """Multi-teacher adversarial robustness distillation (Eq. 22-24) with automatic balance.

    `nat_teacher` teaches clean images, `adv_teacher` adversarial ones; x_adv is made with labels, as the
    published code does. An AW-Net learns each through its own branch and adds L_type, which the balance
    leaves alone; a static network learns both through one.
    """

    def __init__(
        self,
        inner: Inner,
        nat_teacher: nn.Module,
        adv_teacher: nn.Module,
        tau: float = 1.0,
        kl: str = "batchmean",
        eta: float = 0.025,
        balance: bool = True,
        type_weight: float = 1.0,
    ) -> None:
        self.inner = inner
        self.nat_teacher = nat_teacher.eval().requires_grad_(False)
        self.adv_teacher = adv_teacher.eval().requires_grad_(False)
        self.tau, self.kl, self.balance, self.type_weight = tau, kl, balance, type_weight
        self.balancer = Balancer(eta)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Loss:
        x_adv = self.inner.adversaries(net, x, y)
        with torch.no_grad():
            target_nat, target_adv = self.nat_teacher(x), self.adv_teacher(x_adv)
        kind = x.new_zeros(())
        if isinstance(net, AWNet):
            logits_nat, logits_adv, type_logits = branches(net, x, x_adv)
            kind = type_loss(type_logits, len(x))
        else:
            logits_nat, logits_adv = net(torch.cat([x, x_adv])).chunk(2)
        nat = kl_divergence(logits_nat, target_nat, self.tau, self.kl)
        adv = kl_divergence(logits_adv, target_adv, self.tau, self.kl)
        if self.balance:
            self.balancer.update(nat.item(), adv.item())
        total = self.type_weight * kind + self.balancer.w_nat * nat + self.balancer.w_adv * adv
        parts = {"nat": nat.item(), "adv": adv.item(), "type": kind.item(), "w_nat": self.balancer.w_nat}
        return Loss(total, parts)

    def state_dict(self) -> dict[str, Any]:
        return {"w_nat": self.balancer.w_nat, "first": self.balancer.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.balancer.w_nat, self.balancer.first = state["w_nat"], state["first"]


def sign_noise(x: Tensor, share: float, eps: float) -> Tensor:
    """x [N,3,H,W] with random sign noise of radius eps on the first `share` of the images, rounded to 8 bits."""
    n = round(len(x) * share)
    if not n:
        return x
    signs = torch.randint_like(x[:n], 0, 2) * 2 - 1
    return torch.cat([quantise((x[:n] + eps * signs).clamp(0, 1)), x[n:]])


class DetectorPretraining(Stateless):
    """Stages A and C: extractor and type head learn to tell adversarial examples of the trunk from clean images.

    The trunk stands still. Each step draws its attacker from `attackers`, its radius from `eps` (units of
    1/255), so that weak examples are learnt too, its step size between a quarter of that radius and all of it, its
    start, and 1 to 2 `steps` - 1 steps. Attackers: 'nat' and 'adv' have that branch alone, with the omega of the
    clean image; 'detached' has the deployed network without the detector's gradient (T1), 'deployed' with it (T2).
    `noise` is the share of clean images that get random sign noise of the drawn radius and stay *natural*:
    without it, any noise is called an attack.
    """

    def __init__(
        self,
        inner: Inner,
        eps: Sequence[float] = (8.0,),
        noise: float = 0.0,
        attackers: Sequence[str] = ("nat",),
    ) -> None:
        unknown = set(attackers) - {"nat", "adv", "detached", "deployed"}
        if unknown or not attackers:
            raise TypeError(f"attackers are nat, adv, detached and deployed, not {sorted(unknown)}")
        self.inner, self.eps, self.noise, self.attackers = inner, eps, noise, attackers

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Loss:
        assert isinstance(net, AWNet)
        eps = _draw(self.eps) / 255
        steps = int(torch.randint(1, 2 * self.inner.budget.steps, ()))
        step = eps * (1.0 if steps == 1 else float(torch.empty(()).uniform_(max(0.25, 1 / steps), 1)))
        attacker = _draw(self.attackers)
        net.eval()
        with torch.no_grad():
            signals = net.detect(x)

        def model(z: Tensor) -> Tensor:
            if attacker == "deployed":
                return net(z)
            if attacker == "detached":
                return net.classify(z, net.detect(z.detach()))
            return net.classify(z, signals, "adv" if attacker == "adv" else "nat")

        start = normal_start(x) if torch.rand(()) < 0.5 else uniform_start(x, eps)
        x_adv = quantise(ascend(lambda z: cross_entropy(model(z), y), x, start, Budget(eps, step, steps)))
        net.train()
        both = torch.cat([sign_noise(x, self.noise, eps), x_adv])
        loss = type_loss(net.type_head(net.extractor(net.normalise(both))), len(x))
        return Loss(loss, {"type": loss.item()})


def _draw(choices: Sequence[Any]) -> Any:
    return choices[int(torch.randint(len(choices), ()))]
