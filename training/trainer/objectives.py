"""Objectives: the interface, the losses that they share, and the objectives that learn from labels.

A step evaluates an objective on x [N,3,H,W] in [0,1] and y [N], with the network in training mode, in two halves:
`prepare` makes the adversarial images and the teachers' logits (all randomness but dropout is here, and comes from
`rng`), `loss` is a function of the weights. An objective never updates them.

Every objective serves an AW-Net, whose two kinds of image go through their own branches (Eq. 15) and which
adds L_type, and a static network. A network with several exits minimises the mean over them.
"""

# ruff: noqa: B027 - an objective without a state has nothing to do where steps begin and end

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from domain.corruptions import STRENGTHS

from ..attacks.ascent import Budget, ascend, cross_entropy, quantise, uniform_start
from ..core.rng import GLOBAL_RNG, Rng
from ..data.images import to_bytes, to_pixels
from ..evaluation.calibration import TRAINING_KINDS
from ..evaluation.pictures import changed
from ..networks.network import ADVERSARIAL, NATURAL, DetectingNetwork, Network
from .adversary import Adversary


@dataclass
class Loss:
    """`total` to minimise, and its terms by name, to log: numbers that nobody has waited for."""

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Step(NamedTuple):
    """The tensors that a loss is computed from."""

    x: Tensor  # [n,3,H,W] natural images, as the network is to see them
    x_adv: Tensor  # [N,3,H,W] adversarial images; the first n belong to x
    y: Tensor  # [N]
    targets: tuple[Tensor, ...] = ()  # logits of the teachers, [n,K] or [N,K]


class Objective(ABC):
    """See the module's docstring. The state is what a resumed run needs beyond weights and optimiser.

    Attributes:
        whole_batch: `loss` gets the whole batch of a step. Where it gets microbatches (in several processes, or one
            after the other), state must change once a step, by the means given to `end_step`, in all processes alike.
        on_host: what of it computes outside the device, or decides by what it has computed, in words that name its key;
            '' where nothing does, so that a step can be captured.
    """

    whole_batch: bool = True
    on_host: str = ""

    @abstractmethod
    def prepare(self, net: Network, x: Tensor, y: Tensor, rng: Rng = GLOBAL_RNG) -> Step:
        """Adversarial images and teachers' logits for x [N,3,H,W] in [0,1] with labels y [N]."""

    @abstractmethod
    def loss(self, net: Network, step: Step) -> Loss:
        """The loss to differentiate, a function of the weights of `net` alone."""

    def __call__(self, net: Network, x: Tensor, y: Tensor) -> Loss:
        return self.loss(net, self.prepare(net, x, y))

    def set_lr_factor(self, factor: float) -> None:
        """Called before each step with its learning rate as a share of the recipe's."""

    def end_step(self, losses: Mapping[str, Tensor]) -> None:
        """Called after a step that was not `whole_batch` with the means of `Loss.terms` over all microbatches."""

    def moving(self, device: torch.device) -> list[Tensor]:
        """The tensors of the state that steps change, in place, from here on on `device`."""
        return []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def branches(net: DetectingNetwork, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Natural logits, adversarial logits (each [N,K], Eq. 15) and type logits [n+N,2] of a step with n natural images.

    The detector gets both kinds in one batch: in separate batches its batch statistics would give the type away. The
    trunk gets them apart, each kind through its own batch norms.
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


def exit_logits(net: Network, step: Step, one_batch: bool = False) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """(natural logits [n,K], adversarial logits [N,K]) of each exit, and L_type (zero for a static network).

    A static network gets the two kinds in two passes, each with its own batch statistics, as the published codes
    of TRADES, MART, RSLAD and MTARD have it, or in one pass with `one_batch`.
    """
    if (detecting := net.detecting) is not None:
        nat, adv, type_logits = branches(detecting, step.x, step.x_adv)
        return [(nat, adv)], type_loss(type_logits, len(step.x))
    none = step.x.new_zeros(())
    if one_batch:
        n = len(step.x)
        return [(z[:n], z[n:]) for z in net.exits(torch.cat([step.x, step.x_adv]))], none
    return list(zip(net.exits(step.x), net.exits(step.x_adv), strict=True)), none


def exit_mean(losses: Sequence[Tensor]) -> Tensor:
    """Mean of the losses of the exits; the very loss where there is one exit."""
    return losses[0] if len(losses) == 1 else torch.stack(list(losses)).mean()


def kl_divergence(
    student: Tensor, teacher: Tensor, tau: float, reduction: str = "batchmean", squared: bool = True
) -> Tensor:
    """tau^2 KL(teacher^tau || student^tau) of logits [N,K] (Eq. 22-23), without the tau^2 where not `squared`.

    reduction 'batchmean' is the paper's. 'mean' also averages over classes, as the published MTARD code
    does with tau = 1 (it adds 1e-5 inside the logarithm of the teacher; so does this variant), and 'elements'
    does so without the 1e-5, as the published RSLAD code.
    """
    log_student = F.log_softmax(student.float() / tau, dim=1)
    target = F.softmax(teacher.float() / tau, dim=1)
    scale = tau**2 if squared else 1.0
    if reduction == "batchmean":
        return scale * F.kl_div(log_student, target, reduction="batchmean")
    if reduction == "mean":
        return scale * (target * ((target + 1e-5).log() - log_student)).mean()
    if reduction == "elements":
        return scale * F.kl_div(log_student, target, reduction="batchmean") / target.shape[1]
    raise ValueError(f"kl must be 'batchmean', 'mean' or 'elements', not {reduction!r}")


class Standard(Objective):
    """Cross-entropy on clean images (a static network)."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def prepare(self, net: Network, x: Tensor, y: Tensor, rng: Rng = GLOBAL_RNG) -> Step:
        return Step(x, x[:0], y)

    def loss(self, net: Network, step: Step) -> Loss:
        losses = [F.cross_entropy(z.float(), step.y, label_smoothing=self.label_smoothing) for z in net.exits(step.x)]
        loss = exit_mean(losses)
        return Loss(loss, {"nat": loss.detach()})


class PgdAt(Objective):
    """Adversarial training (Madry et al.) with labels; with N-FGSM's attack it is the fast one-step training.

    A static network minimises cross-entropy on x_adv, or a share `clean_weight` of it on x (0.5 is Eq. 1). An AW-Net
    minimises it on x through BN_nat and on x_adv through BN_adv, `nat_weight` to 1 - `nat_weight`, plus L_type.

    `nat_eps` > 0 trains a natural branch that is itself partly robust: x is first moved by `nat_steps`
    signed steps inside a ball of `nat_eps` (pixel units of 1/255) against that branch, with omega held at that of x
    and without its gradient; `nat_perturbed_share` of the images are moved. What comes out is not rounded to 8 bits,
    where `Adversary.perturb` rounds: the detector in training sees fractions of a grey level in these natural images.
    `nat_batch_share` is the share of the batch that goes through the natural branch at all: a trunk that starts
    clean-trained needs less of it than of the adversarial one. `sign_noise_share` is the share of
    natural images that get random sign noise and stay natural, as in `DetectorPretraining`; so are `corruption_share`
    and its honest corruptions. Without `moved_labelled` the detector learns nothing of images that were moved: they
    are no attack that anybody made, nor are they as they were.
    """

    def __init__(
        self,
        adversary: Adversary,
        label_smoothing: float = 0.0,
        nat_weight: float = 0.5,
        type_weight: float = 1.0,
        nat_eps: float = 0.0,
        nat_steps: int = 1,
        nat_perturbed_share: float = 1.0,
        nat_batch_share: float = 1.0,
        sign_noise_share: float = 0.0,
        clean_weight: float = 0.0,
        corruption_share: float = 0.0,
        moved_labelled: bool = True,
    ) -> None:
        if not moved_labelled and nat_eps and nat_perturbed_share + corruption_share > 1:
            raise TypeError("nat_perturbed_share and corruption_share are of the same images: their sum is 1 at most")
        if not moved_labelled and (not nat_eps or nat_perturbed_share == 1):
            raise TypeError(
                "without moved_labelled, nat_eps moves some natural images and leaves others (nat_perturbed_share)"
            )
        self.adversary = adversary
        self.corruption_share, self.moved_labelled = corruption_share, moved_labelled
        if corruption_share:
            self.on_host = "objective.corruption_share, whose corruptions are computed by NumPy"
        self.clean_weight = clean_weight
        self.label_smoothing = label_smoothing
        self.nat_weight = nat_weight
        self.type_weight = type_weight
        self.nat_eps = nat_eps / 255
        self.nat_steps = nat_steps
        self.nat_perturbed_share = nat_perturbed_share
        self.nat_batch_share = nat_batch_share
        self.sign_noise_share = sign_noise_share

    def prepare(self, net: Network, x: Tensor, y: Tensor, rng: Rng = GLOBAL_RNG) -> Step:
        x_adv = self.adversary.perturb(net, x, y, rng=rng)
        detecting = net.detecting
        if detecting is None:
            return Step(x if self.clean_weight else x[:0], x_adv, y)
        n = natural_images(len(x), self.nat_batch_share)
        x_nat = self.natural(detecting, x[:n], y[:n], rng[:n])
        x_nat = sign_noise(x_nat, self.sign_noise_share, self.adversary.budget.eps, rng)
        return Step(corrupted(x_nat, self.corruption_share, rng[:n]), x_adv, y)

    def loss(self, net: Network, step: Step) -> Loss:
        y, n = step.y, len(step.x)
        detecting = net.detecting
        if detecting is None:
            loss = exit_mean([self.cross_entropy(z, y) for z in net.exits(step.x_adv)])
            if not self.clean_weight:
                return Loss(loss, {"adv": loss.detach()})
            natural = exit_mean([self.cross_entropy(z, y) for z in net.exits(step.x)])
            total = (1 - self.clean_weight) * loss + self.clean_weight * natural
            return Loss(total, {"nat": natural.detach(), "adv": loss.detach()})
        logits_nat, logits_adv, type_logits = branches(detecting, step.x, step.x_adv)
        nat, adv, kind = (
            self.cross_entropy(logits_nat, y[:n]),
            self.cross_entropy(logits_adv, y),
            self.type_loss(type_logits, n),
        )
        total = self.type_weight * kind + 2 * (self.nat_weight * nat + (1 - self.nat_weight) * adv)
        return Loss(total, {"nat": nat.detach(), "adv": adv.detach(), "type": kind.detach()})

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), y, label_smoothing=self.label_smoothing)

    def type_loss(self, type_logits: Tensor, n: int) -> Tensor:
        """L_type of [n+N,2], without the moved ones of the n natural images where they have no label."""
        moved = 0 if self.moved_labelled else round(n * self.nat_perturbed_share)
        return type_loss(type_logits[moved:], n - moved)

    def natural(self, net: DetectingNetwork, x: Tensor, y: Tensor, rng: Rng = GLOBAL_RNG) -> Tensor:
        """The natural branch's training images: x, or with `nat_eps` x perturbed against that branch."""
        if not self.nat_eps:
            return x
        part = slice(0, round(len(x) * self.nat_perturbed_share))
        net.eval()
        model = self.adversary.attacked(net)
        with torch.no_grad():
            signals = model.detect(x[part])
        budget = Budget(
            self.nat_eps, self.nat_eps * (1.25 if self.nat_steps == 1 else 2 / self.nat_steps), self.nat_steps
        )
        start = uniform_start(x[part], self.nat_eps, rng[part], "natural")
        moved = ascend(lambda z: cross_entropy(model.classify(z, signals, "nat"), y[part]), x[part], start, budget)
        net.train()
        return torch.cat([moved, x[part.stop :]])


class Trades(Objective):
    """TRADES (Zhang et al. 2019): cross-entropy on clean images plus beta times KL(p(x) || p(x_adv)).

    x_adv ascends that divergence, not the cross-entropy. An AW-Net's p(x) goes through its natural branch, its
    p(x_adv) through its adversarial one (the paper's Fig. 8).
    """

    def __init__(self, adversary: Adversary, beta: float = 6.0, type_weight: float = 1.0) -> None:
        self.adversary, self.beta, self.type_weight = adversary, beta, type_weight

    def prepare(self, net: Network, x: Tensor, y: Tensor, rng: Rng = GLOBAL_RNG) -> Step:
        return Step(x, self.adversary.perturb(net, x, y, self.adversary.clean_probabilities(net, x), rng), y)

    def loss(self, net: Network, step: Step) -> Loss:
        pairs, kind = exit_logits(net, step)
        nat = exit_mean([F.cross_entropy(z.float(), step.y) for z, _ in pairs])
        adv = exit_mean([kl_divergence(z_adv, z_nat, tau=1.0) for z_nat, z_adv in pairs])
        total = nat + self.beta * adv + self.type_weight * kind
        return Loss(total, {"nat": nat.detach(), "adv": adv.detach(), "type": kind.detach()})


class Mart(Objective):
    """MART (Wang et al. 2020): boosted cross-entropy on x_adv plus beta times KL(p(x) || p(x_adv)), the latter
    weighted by how wrong the clean image is, 1 - p_y(x).

    Boosted: -log p_y(x_adv) - log(1 - the highest other probability). beta is 5 in the published code.
    """

    def __init__(self, adversary: Adversary, beta: float = 5.0, type_weight: float = 1.0) -> None:
        self.adversary, self.beta, self.type_weight = adversary, beta, type_weight

    def prepare(self, net: Network, x: Tensor, y: Tensor, rng: Rng = GLOBAL_RNG) -> Step:
        return Step(x, self.adversary.perturb(net, x, y, rng=rng), y)

    def loss(self, net: Network, step: Step) -> Loss:
        pairs, kind = exit_logits(net, step)
        losses = [self.pair(nat.float(), adv.float(), step.y) for nat, adv in pairs]
        boosted, weighted = exit_mean([b for b, _ in losses]), exit_mean([w for _, w in losses])
        total = boosted + self.beta * weighted + self.type_weight * kind
        return Loss(total, {"nat": weighted.detach(), "adv": boosted.detach(), "type": kind.detach()})

    @staticmethod
    def pair(nat: Tensor, adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(boosted cross-entropy, weighted divergence) of logits [N,K]; the small numbers are the published ones."""
        p_nat, p_adv = F.softmax(nat, dim=1), F.softmax(adv, dim=1)
        other = p_adv.scatter(1, y[:, None], 0.0).amax(1)
        boosted = F.cross_entropy(adv, y) - (1.0001 - other + 1e-12).log().mean()
        wrong = 1.0000001 - p_nat.gather(1, y[:, None]).squeeze(1)
        return boosted, (F.kl_div((p_adv + 1e-12).log(), p_nat, reduction="none").sum(1) * wrong).mean()


def natural_images(batch: int, share: float) -> int:
    """How many of `batch` images go through the natural branch: at least two, as batch norms need."""
    return min(batch, max(2, round(batch * share)))


def sign_noise(x: Tensor, share: float, eps: float, rng: Rng = GLOBAL_RNG) -> Tensor:
    """x [N,3,H,W] with random sign noise of radius eps on the first `share` of the images, rounded to 8 bits.

    One amplitude teaches a detector that amplitude, not noise: see docs/decisions/0005-detector-stage.md.
    """
    n = round(len(x) * share)
    if not n:
        return x
    signs = rng[:n].signs(x[:n], "noise")
    return torch.cat([quantise((x[:n] + eps * signs).clamp(0, 1)), x[n:]])


def corrupted(x: Tensor, share: float, rng: Rng = GLOBAL_RNG) -> Tensor:
    """x [N,3,H,W] with the last `share` of the images changed as honest programs change pictures, at 8 bits.

    Each image gets a kind of the group "training" of `domain.corruptions` and a strength of its own; what judges a
    network is never among them. They are computed on the CPU, at about 0.1 ms an image of 32 x 32.
    """
    n = round(len(x) * share)
    if not n:
        return x
    last = slice(len(x) - n, len(x))
    drawn = rng[last].uniform(x[last, 0, 0, :3], 0, 1, "corruption").cpu()  # [n,3]: kind, strength, seed
    kinds, strengths, seeds = (drawn * torch.tensor([len(TRAINING_KINDS), len(STRENGTHS), 1 << 24])).long().T.tolist()
    images = to_bytes(x[last]).cpu()
    parts = [
        changed(image[None], TRAINING_KINDS[kind], STRENGTHS[strength], seed)
        for image, kind, strength, seed in zip(images, kinds, strengths, seeds, strict=True)
    ]
    return torch.cat([x[: last.start], to_pixels(torch.cat(parts)).to(x.device)])
