"""What the objectives promise: the published balance, the paper's losses, adversaries of the deployed network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from domain.corruptions import CORRUPTIONS, STRENGTHS
from training.attacks.ascent import Budget, quantise
from training.core.rng import KeyedRng
from training.data.answers import Answers
from training.evaluation.pictures import changed
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import StaticConfig, build_static
from training.networks.network import NATURAL, Signals
from training.trainer import objectives
from training.trainer.adversary import Adversary, evading_gain
from training.trainer.distillation import BoundedDistillation, LossBalance, Mtard, Rslad
from training.trainer.objectives import (
    Mart,
    Objective,
    PgdAt,
    Standard,
    Step,
    Trades,
    branches,
    corrupted,
    kl_divergence,
    sign_noise,
    type_loss,
)
from training.trainer.pretraining import DetectorPretraining
from training.trainer.recipe import RecipeError

WIDTH = 4


@pytest.fixture
def awnet() -> AWNet:
    torch.manual_seed(0)
    net = AWNet(AWNetConfig(width=WIDTH, beta=1.0))
    for head in net.signal_heads:
        torch.nn.init.normal_(head.weight, std=0.2)
    return net


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 3, 32, 32, generator=generator), torch.arange(8) % 10


def test_the_balancer_follows_the_published_formula_worked_by_hand() -> None:
    """Three steps of w <- w - eta (w - Lhat_nat / (Lhat_adv + Lhat_nat)), eta 0.025, worked on paper."""
    balancer = LossBalance(eta=0.025)
    balancer.update(torch.tensor(2.0), torch.tensor(4.0))  # both relative losses are 1: 0.5 - 0.025 * (0.5 - 0.5)
    assert balancer.w_nat == pytest.approx(0.5)
    balancer.update(torch.tensor(1.0), torch.tensor(4.0))  # 0.5 and 1: 0.5 - 0.025 * (0.5 - 1/3) = 0.4958333
    assert balancer.w_nat == pytest.approx(0.4958333333, abs=1e-9)
    balancer.update(torch.tensor(1.0), torch.tensor(1.0))  # 0.5 and 0.25: w - 0.025 * (w - 2/3) = 0.5001041667
    assert balancer.w_nat == pytest.approx(0.5001041667, abs=1e-9)
    assert balancer.w_adv == pytest.approx(1 - balancer.w_nat)


def test_kl_is_zero_for_equal_logits_and_scales_as_the_paper_has_it() -> None:
    """Eq. 22-23: tau^2 times batch-mean KL(teacher || student); the code's variant is its mean over classes too."""
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 10), torch.randn(6, 10)
    assert kl_divergence(teacher, teacher, tau=5.0).item() == pytest.approx(0, abs=1e-6)
    p, q = F.softmax(teacher / 5, 1), F.softmax(student / 5, 1)
    by_hand = 25 * (p * (p / q).log()).sum() / 6
    assert kl_divergence(student, teacher, tau=5.0).item() == pytest.approx(by_hand.item(), rel=1e-5)
    code = kl_divergence(student, teacher, tau=1.0, reduction="mean")
    assert code.item() == pytest.approx(kl_divergence(student, teacher, tau=1.0).item() / 10, rel=2e-2)
    with pytest.raises(ValueError, match="batchmean"):
        kl_divergence(student, teacher, tau=1.0, reduction="sum")


def test_type_loss_names_the_first_half_natural() -> None:
    """Columns are (adversarial, natural); the natural images come first."""
    right = torch.tensor([[-9.0, 9.0], [9.0, -9.0]])
    assert type_loss(right, 1).item() < 1e-6
    assert type_loss(right.flip(0), 1).item() > 10


@pytest.mark.parametrize(
    "forced, detached, evading",
    [
        (0.0, 0.0, 0.0),
        (0.5, 0.0, 0.0),
        (1.0, 0.0, 0.0),
        (0.25, 0.5, 0.0),
        (0.0, 1.0, 0.0),
        (0.5, 0.5, 0.25),
        (0.0, 0.0, 1.0),
    ],
)
def test_adversaries_stay_in_the_ball_and_leave_the_network_as_it_was(
    awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor], forced: float, detached: float, evading: float
) -> None:
    """Any mixture of attackers gives one x_adv an image, inside eps, and has no side effect."""
    x, y = batch
    before = {k: v.clone() for k, v in awnet.state_dict().items()}
    awnet.train()
    x_adv = Adversary(
        Budget(steps=2), adv_branch_share=forced, detector_ignored_share=detached, evading_share=evading
    ).perturb(awnet, x, y)
    assert x_adv.shape == x.shape and not x_adv.requires_grad
    assert (x_adv - x).abs().max() <= 8 / 255 + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
    assert (x_adv != x).flatten(1).any(1).all()
    assert awnet.training and all(torch.equal(v, before[k]) for k, v in awnet.state_dict().items())


def test_a_plain_attacker_sees_the_detector_and_a_detached_one_does_not(
    awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """T2 differentiates through D, T1 does not: from one start they must find different images."""
    x, y = batch
    found = []
    for detached in (0.0, 1.0):
        torch.manual_seed(3)
        found.append(Adversary(Budget(steps=3), detector_ignored_share=detached).perturb(awnet, x, y))
    assert not torch.equal(found[0], found[1])


def test_a_forced_attacker_steers_omega_only_where_he_may(
    awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """`through` gives the attacker of the adversarial branch the detector's gradient: one start, different images."""
    x, y = batch
    found = []
    for through in (False, True):
        torch.manual_seed(3)
        found.append(
            Adversary(Budget(steps=3), adv_branch_share=1.0, adv_branch_sees_detector=through).perturb(awnet, x, y)
        )
    assert not torch.equal(found[0], found[1])


def test_those_who_evade_keep_to_the_drawn_radius(awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The last quarter of the batch goes for the type margin too, in a quarter of the ball; the rest has all of it."""
    x, y = (torch.cat([part] * 4)[:8] for part in batch)
    x = (x * 255).round() / 255
    x_adv = Adversary(Budget(steps=3), start="uniform", evading_share=0.25, evading_radii=(0.25,)).perturb(awnet, x, y)
    moved = 255 * (x_adv - x).abs().flatten(1).amax(1)
    assert moved[6:].max() <= 2.01 and moved[6:].min() > 0 and moved[:6].min() > 2.01


def test_each_kind_trains_its_own_batch_norm(awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Eq. 15: natural images move BN_nat and give it gradients, adversarial ones BN_adv."""
    x, _ = batch
    awnet.train()
    nat, _, _ = branches(awnet, x, x * 0)
    nat.sum().backward()
    assert awnet.stem.nat.weight.grad is not None and awnet.stem.adv is not None
    assert awnet.stem.adv.weight.grad is None
    assert not torch.allclose(awnet.stem.nat.running_mean, awnet.stem.adv.running_mean)


@pytest.mark.parametrize("nat_eps", [0.0, 2.0])
def test_pgd_at_trains_both_branches_and_never_the_frozen_extractor(
    awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor], nat_eps: float
) -> None:
    """All trunk and head parameters get a gradient, none of the frozen extractor does."""
    awnet.train()
    loss = PgdAt(Adversary(Budget(steps=1), adv_branch_share=0.5), nat_eps=nat_eps)(awnet, *batch)
    loss.total.backward()
    for name, parameter in awnet.named_parameters():
        assert (parameter.grad is None) == name.startswith("extractor."), name
    assert set(loss.terms) == {"nat", "adv", "type"}


def test_mtard_distils_each_branch_from_its_teacher(awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Teachers never get a gradient, the balance is state that can be restored, a static student works too."""
    torch.manual_seed(1)
    teachers = [build_static(StaticConfig("resnet18", WIDTH)) for _ in range(2)]
    objective = Mtard(Adversary(Budget(steps=1)), *teachers)
    awnet.train()
    loss = objective(awnet, *batch)
    loss.total.backward()
    assert all(p.grad is None for t in teachers for p in t.parameters())
    assert loss.terms["w_nat"] == 0.5
    again = Mtard(Adversary(Budget(steps=1)), *teachers)
    again.load_state_dict(objective.state_dict())
    assert again.balancer.first == objective.balancer.first is not None
    static = build_static(StaticConfig("resnet18", WIDTH))
    assert torch.isfinite(objective(static.train(), *batch).total)


class Recording(torch.nn.Module):
    """A teacher that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build_static(StaticConfig("resnet18", WIDTH)).eval()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        logits: torch.Tensor = self.body(x)
        return logits


@pytest.mark.parametrize("student", ["awnet", "static"])
def test_mtard_distils_a_share_of_clean_images_some_of_them_noisy(
    awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor], student: str
) -> None:
    """Eq. 22 is the mean over `nat_images` of the batch; noise is for the student alone, its teacher sees x."""
    x, y = batch
    net = awnet if student == "awnet" else build_static(StaticConfig("resnet18", WIDTH))
    nat_teacher, adv_teacher = Recording(), Recording()
    objective = Mtard(
        Adversary(Budget(steps=1)),
        nat_teacher,
        adv_teacher,
        nat_batch_share=0.5,
        sign_noise_share=0.5,
        balance=False,
        type_weight=0.0,
    )
    before = copy.deepcopy(net).train()  # the attack sees running statistics, which the step moves
    torch.manual_seed(7)
    loss = objective(net.train(), x, y)
    assert torch.equal(nat_teacher.seen[0], x[:4])
    assert len(adv_teacher.seen[0]) == len(x) and not torch.equal(adv_teacher.seen[0], x)

    torch.manual_seed(7)
    again = Adversary(Budget(steps=1)).perturb(before, x, y)
    assert torch.equal(again, adv_teacher.seen[0])
    noisy = sign_noise(x[:4], 0.5, 8 / 255)
    assert torch.equal(noisy[2:], x[2:4]) and not torch.equal(noisy[:2], x[:2])
    if isinstance(before, AWNet):
        nat_logits, adv_logits, _ = branches(before, noisy, again)
    else:
        nat_logits, adv_logits = before(torch.cat([noisy, again])).split([4, 8])
    nat = kl_divergence(nat_logits, nat_teacher.body(x[:4]), 1.0)
    adv = kl_divergence(adv_logits, adv_teacher.body(again), 1.0)
    assert loss.terms["nat"] == pytest.approx(nat.item(), rel=1e-5)
    assert loss.terms["adv"] == pytest.approx(adv.item(), rel=1e-5)
    assert loss.total.item() == pytest.approx(0.5 * nat.item() + 0.5 * adv.item(), rel=1e-5)


def test_mtard_without_its_new_options_is_what_it_was(awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """By default every image goes through the natural branch, without noise and without drawing a random number."""
    x, y = batch
    teachers = [build_static(StaticConfig("resnet18", WIDTH)).eval() for _ in range(2)]
    before = copy.deepcopy(awnet).train()
    torch.manual_seed(7)
    loss = Mtard(Adversary(Budget(steps=1)), *teachers)(awnet.train(), x, y)
    after = torch.rand(())
    torch.manual_seed(7)
    x_adv = Adversary(Budget(steps=1)).perturb(before, x, y)
    nat, adv, kind = branches(before, x, x_adv)
    assert torch.equal(torch.rand(()), after)
    by_hand = type_loss(kind, 8) + 0.5 * (
        kl_divergence(nat, teachers[0](x), 1.0) + kl_divergence(adv, teachers[1](x_adv), 1.0)
    )
    assert loss.total.item() == pytest.approx(by_hand.item(), rel=1e-5)


# The published losses, written out: x, y and x_adv as tensors, `net` a static network in training mode.


def literal_trades(net: torch.nn.Module, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Zhang et al. 2019, Eq. 5 with 1/lambda = 6: cross-entropy + 6 sum_k p log(p/q) / N."""
    p, q = net(x).softmax(1), net(x_adv).softmax(1)
    return (-p.gather(1, y[:, None]).log().mean() + 6 * (p * (p / q).log()).sum() / len(x)).detach()


def literal_mart(net: torch.nn.Module, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Wang et al. 2020, Eq. 11 image by image with lambda = 5."""
    p, q = net(x).softmax(1), net(x_adv).softmax(1)
    total = torch.zeros(())
    for n in range(len(x)):
        true = int(y[n])
        others = [q[n, k] for k in range(10) if k != true]
        boosted = -q[n, true].log() - (1 - max(others)).log()
        total += boosted + 5 * (p[n] * (p[n] / q[n]).log()).sum() * (1 - p[n, true])
    return (total / len(x)).detach()


@pytest.mark.parametrize(
    "objective, literal",
    [(Trades(Adversary(Budget(steps=2))), literal_trades), (Mart(Adversary(Budget(steps=2))), literal_mart)],
    ids=["trades", "mart"],
)
def test_a_loss_is_the_published_one_written_out(
    batch: tuple[torch.Tensor, torch.Tensor], objective: Objective, literal: Callable[..., torch.Tensor]
) -> None:
    """On one batch, clean and adversarial images in two passes of a network in training mode, gradient and all."""
    x, y = batch
    net = build_static(StaticConfig("resnet18", WIDTH)).train()
    with torch.no_grad():
        net.body.classifier.weight.mul_(6)  # answers that differ
    other = copy.deepcopy(net)
    step = objective.prepare(net, x, y)
    loss = objective.loss(net, step)
    assert net.training and torch.equal(step.x, x) and torch.equal(step.y, y)
    assert loss.total.item() == pytest.approx(literal(other, x, step.x_adv, y).item(), rel=1e-3)
    loss.total.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_trades_attacks_the_divergence_and_mart_the_label(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """x_adv of TRADES leaves the network's own clean answer, whatever the label; that of MART leaves the label."""
    x, y = batch
    net = build_static(StaticConfig("resnet18", WIDTH)).eval()
    with torch.no_grad():
        net.body.classifier.weight.mul_(6)

        def apart(x_adv: torch.Tensor) -> float:
            p = net(x).softmax(1)
            return float((p * (p / net(x_adv).softmax(1)).log()).sum())

        def wrong(x_adv: torch.Tensor) -> float:
            return float(F.cross_entropy(net(x_adv), y))

    adversary = Adversary(Budget(steps=5))
    torch.manual_seed(3)
    trades = Trades(adversary).prepare(net, x, y).x_adv
    torch.manual_seed(3)
    again = Trades(adversary).prepare(net, x, (y + 1) % 10).x_adv
    mart = Mart(adversary).prepare(net, x, y).x_adv
    assert torch.equal(trades, again)
    with torch.no_grad():
        assert apart(trades) > apart(mart) and wrong(mart) > wrong(trades) and apart(trades) > 10 * apart(x) + 1e-3


def test_rslad_is_five_sixths_robust_soft_labels_and_needs_no_label(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Zi et al. 2021, Eq. 9: both student answers are taught by the teacher's answer to the *clean* image."""
    x, y = batch
    teacher, net = (build_static(StaticConfig("resnet18", WIDTH)) for _ in range(2))
    for network in (teacher, net):
        with torch.no_grad():
            network.body.classifier.weight.mul_(6)
    objective = Rslad(Adversary(Budget(steps=3)), teacher)
    other = copy.deepcopy(net).train()
    torch.manual_seed(3)
    step = objective.prepare(net.train(), x, y)
    torch.manual_seed(3)
    assert torch.equal(objective.prepare(net, x, (y + 1) % 10).x_adv, step.x_adv)
    t = teacher(x).softmax(1)
    natural = (t * (t / other(x).softmax(1)).log()).sum() / len(x)
    adversarial = (t * (t / other(step.x_adv).softmax(1)).log()).sum() / len(x)
    loss = objective.loss(net, step)
    assert loss.total.item() == pytest.approx(5 / 6 * adversarial.item() + natural.item() / 6, rel=1e-3)
    elements = Rslad(Adversary(Budget(steps=3)), teacher, kl="elements").loss(copy.deepcopy(other), step)
    assert elements.total.item() == pytest.approx(loss.total.item() / 10, rel=1e-3)  # the code's mean over classes too
    loss.total.backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_mtard_s_published_variants_are_options(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """kl "mean" written out as the code has it, its factor of 10, two passes, an eta that follows the learning rate."""
    x, y = batch
    teachers = [build_static(StaticConfig("resnet18", WIDTH)).eval() for _ in range(2)]
    net = build_static(StaticConfig("resnet18", WIDTH)).train()
    other = copy.deepcopy(net)
    objective = Mtard(Adversary(Budget(steps=1)), *teachers, kl="mean", kl_scale=10, one_batch=False, eta_decays=True)
    step = objective.prepare(net, x, y)
    loss = objective.loss(net, step)
    with torch.no_grad():
        parts = [
            10 * (-other(images).log_softmax(1) * t + (t + 1e-5).log() * t).mean().item()
            for images, t in ((x, teachers[0](x).softmax(1)), (step.x_adv, teachers[1](step.x_adv).softmax(1)))
        ]
    assert [loss.terms["nat"], loss.terms["adv"]] == pytest.approx(parts, rel=1e-3)
    assert loss.total.item() == pytest.approx(sum(parts) / 2, rel=1e-3)
    objective.set_lr_factor(0.1)
    assert objective.balancer.eta == pytest.approx(0.0025)
    fixed = Mtard(Adversary(Budget(steps=1)), *teachers)
    fixed.set_lr_factor(0.1)
    assert fixed.balancer.eta == 0.025
    hot, cold = torch.randn(4, 10), torch.randn(4, 10)
    squared = kl_divergence(hot, cold, tau=5.0)
    assert kl_divergence(hot, cold, tau=5.0, squared=False).item() == pytest.approx(squared.item() / 25)


@pytest.mark.parametrize("kind", [Trades, Mart, Rslad])
def test_an_awnet_learns_every_objective_through_its_two_branches(
    awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor], kind: type[Objective]
) -> None:
    """Clean images move BN_nat, adversarial ones BN_adv, and L_type is part of the total (Eq. 24)."""
    x, y = batch
    more = [build_static(StaticConfig("resnet18", WIDTH))] if kind is Rslad else []
    objective = kind(Adversary(Budget(steps=1), adv_branch_share=0.5), *more)  # type: ignore[call-arg]
    awnet.train()
    step = objective.prepare(awnet, x, y)
    before = copy.deepcopy(awnet)
    loss = objective.loss(awnet, step)
    loss.total.backward()
    for name, parameter in awnet.named_parameters():
        assert (parameter.grad is None) == name.startswith("extractor."), name
    _, _, type_logits = branches(before, step.x, step.x_adv)
    assert loss.terms["type"] == pytest.approx(type_loss(type_logits, 8).item(), rel=1e-5)
    objective.type_weight = 0.0  # type: ignore[attr-defined]
    without = objective.loss(copy.deepcopy(before), step).total.item()
    assert loss.total.item() == pytest.approx(without + loss.terms["type"].item(), rel=1e-4)


def test_n_fgsm_takes_one_unprojected_step_from_strong_noise(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """de Jorge et al. 2022: x + U(-2 eps, 2 eps), then eps * sign(gradient), cut to [0,1] and to nothing else."""
    x, y = batch
    x = 0.3 + 0.4 * x  # away from black and white, where pixels are cut
    net = build_static(StaticConfig("resnet18", WIDTH)).eval()
    eps = 8 / 255
    torch.manual_seed(5)
    x_adv = Adversary(Budget(eps, eps, 1), start="n_fgsm").perturb(net, x, y)
    torch.manual_seed(5)
    noisy = (x + torch.empty_like(x).uniform_(-2 * eps, 2 * eps)).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(noisy), y, reduction="sum"), noisy)
    torch.testing.assert_close(x_adv, (noisy + eps * gradient.sign()).detach())
    assert (x_adv - x).abs().max() > 2.5 * eps
    with pytest.raises(ValueError, match="steps must be 1"):
        Adversary(Budget(steps=2), start="n_fgsm")


def test_a_static_network_can_keep_a_share_of_clean_loss(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Eq. 1: half of the loss on x, half on x_adv."""
    x, y = batch
    net = build_static(StaticConfig("resnet18", WIDTH)).train()
    objective = PgdAt(Adversary(Budget(steps=1)), clean_weight=0.5)
    step = objective.prepare(net, x, y)
    other = copy.deepcopy(net)
    by_hand = (F.cross_entropy(other(x), y) + F.cross_entropy(other(step.x_adv), y)) / 2
    assert objective.loss(net, step).total.item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_all_exits_of_a_multi_exit_network_learn(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """RDI-ResNet minimises the mean over its seven exits, under every objective that a static network has."""
    x, y = batch
    teacher = build_static(StaticConfig("resnet18", WIDTH))
    adversary = Adversary(Budget(steps=1))
    objectives = [Standard(), PgdAt(adversary), Trades(adversary), Mart(adversary), Rslad(adversary, teacher)]
    for objective in [
        *objectives,
        Mtard(adversary, teacher, teacher),
        Mtard(adversary, teacher, teacher, one_batch=False),
    ]:
        net = build_static(StaticConfig("rdi_resnet38", WIDTH)).train()
        objective(net, x, y).total.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.body.branches.parameters() if p.dim() > 1)
    net = build_static(StaticConfig("rdi_resnet38", WIDTH)).eval()
    by_hand = sum(F.cross_entropy(z, y).item() for z in net.exits(x)) / 7
    assert Standard()(net, x, y).total.item() == pytest.approx(by_hand, rel=1e-5)


def test_detector_pretraining_touches_only_extractor_and_type_head(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Stage A: the trunk that is attacked stays as it is, statistics included."""
    net = AWNet(AWNetConfig(width=WIDTH, beta=1.0, extractor_frozen=False)).train()
    statistics = net.stem.nat.running_mean.clone()
    DetectorPretraining(Adversary(Budget(steps=1)), sign_noise_share=0.5)(net, *batch).total.backward()
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}
    assert trained == {"extractor", "type_head"}
    assert torch.equal(statistics, net.stem.nat.running_mean)


def test_corrupted_images_are_the_last_ones_and_of_training_kinds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets a kind and a strength of its own; what judges a network must never train one."""
    seen = set()

    def record(images: torch.Tensor, kind: str, strength: int, seed: int) -> torch.Tensor:
        seen.add((kind, strength, seed))
        return changed(images, kind, strength, seed)

    monkeypatch.setattr(objectives, "changed", record)
    x = quantise(torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    out = corrupted(x, 0.75)
    assert torch.equal(out[:100], x[:100]) and out.shape == x.shape and out.dtype == x.dtype
    assert (out[100:] != x[100:]).flatten(1).any(1).sum() > 250  # a median filter may leave flat images alone
    assert torch.equal(out, quantise(out)) and out.min() >= 0 and out.max() <= 1
    kinds, strengths, seeds = ({one[i] for one in seen} for i in range(3))
    assert kinds == {name for name, kind in CORRUPTIONS.items() if kind.group == "training"} and len(kinds) == 16
    assert strengths == set(STRENGTHS) and len(seeds) > 290
    assert corrupted(x, 0.0) is x


def test_what_corrupts_an_image_follows_from_the_image() -> None:
    """Not from its place in the batch, or the batches before: a resumed run and several processes see the same."""
    x, rng = quantise(torch.rand(6, 3, 8, 8)), KeyedRng.of(0, 0, 0, torch.arange(6))
    whole = corrupted(x, 1.0, rng)
    assert torch.equal(corrupted(x[4:], 1.0, rng[4:]), whole[4:])
    assert torch.equal(corrupted(x[:4], 0.5, rng)[2:], whole[2:4])  # natural images are fewer than the batch


@pytest.mark.parametrize("attacker", ["evading", "transferred"])
def test_a_detector_s_attacker_wants_what_his_name_says(
    attacker: str, awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """'evading' lowers the score where the class is wrong already, 'transferred' never asks the network itself."""
    x, y = quantise(batch[0]), batch[1]
    torch.manual_seed(3)
    torch.nn.init.normal_(awnet.type_head.weight)
    static = build_static(StaticConfig("resnet18", WIDTH))
    surrogates = {"surrogates": [static]} if attacker == "transferred" else {}
    objective = DetectorPretraining(Adversary(Budget(steps=3)), attackers=(attacker,), **surrogates)
    x_adv = objective.prepare(awnet, x, y, KeyedRng.of(0, 0, 0, torch.arange(8))).x_adv
    assert 0 < (x_adv - x).abs().max() <= 8 / 255 + 1e-6 and torch.equal(x_adv, quantise(x_adv))
    awnet.eval()
    if attacker == "evading":
        assert evading_gain(awnet, x_adv, y).mean() > evading_gain(awnet, x, y).mean()
    else:
        assert F.cross_entropy(static(x_adv), y) > F.cross_entropy(static(x), y)
        torch.nn.init.normal_(awnet.classifier.weight)
        assert torch.equal(x_adv, objective.prepare(awnet, x, y, KeyedRng.of(0, 0, 0, torch.arange(8))).x_adv)


def test_signals_are_held_at_their_teacher_s(awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The term is the mean squared error of omega on both kinds of image, and reaches the signal heads."""
    teacher = AWNet(AWNetConfig(width=WIDTH, beta=1.0, extractor_width=2))
    net = AWNet(AWNetConfig(width=WIDTH, beta=1.0, extractor_frozen=False)).train()
    for head in (*teacher.signal_heads, *net.signal_heads):
        torch.nn.init.normal_(head.weight, std=0.2)
    objective = DetectorPretraining(
        Adversary(Budget(steps=1)), corruption_share=0.5, signals_weight=3.0, signals_teacher=teacher
    )
    step = objective.prepare(net, *batch, KeyedRng.of(0, 0, 0, torch.arange(8)))
    both = torch.cat([step.x, step.x_adv])
    errors = [F.mse_loss(a, b) for a, b in zip(net.detect(both).omega, teacher.eval().detect(both).omega, strict=True)]
    loss = objective.loss(net, step)
    assert loss.terms["signals"] == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)
    assert loss.total.item() == pytest.approx((loss.terms["type"] + 3 * loss.terms["signals"]).item(), rel=1e-4)
    loss.total.backward()
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}
    assert trained == {"extractor", "type_head", "signal_heads"}
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attackers": ("transferred",)}, "transferred"),
        ({"signals_weight": 1.0}, "signals_teacher"),
        ({"sign_noise_share": 0.6, "corruption_share": 0.6}, "sum"),
        ({"attackers": ("evade",)}, "attackers are"),
    ],
)
def test_a_detection_stage_that_lacks_a_part_is_refused(options: dict[str, Any], message: str) -> None:
    """Half of a setting would train something else."""
    with pytest.raises(TypeError, match=message):
        DetectorPretraining(Adversary(Budget(steps=1)), **options)


def test_images_that_were_moved_may_be_without_a_label(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The detector gets no gradient from them; nor can all natural images be without one."""
    torch.manual_seed(0)
    net = AWNet(AWNetConfig(width=WIDTH, beta=1.0, extractor_frozen=False)).train()
    x, y = batch
    labelled, unlabelled = (
        PgdAt(Adversary(Budget(steps=1)), nat_eps=4.0, nat_perturbed_share=0.5, moved_labelled=labels)
        for labels in (True, False)
    )
    step = Step(x, x.flip(0), y)
    type_logits = net.detect(torch.cat([step.x, step.x_adv])).type_logits
    assert labelled.loss(net, step).terms["type"] == pytest.approx(type_loss(type_logits, 8).item(), rel=1e-4)
    assert unlabelled.loss(net, step).terms["type"] == pytest.approx(type_loss(type_logits[4:], 4).item(), rel=1e-4)
    for options in ({"nat_eps": 4.0}, {}, {"nat_eps": 4.0, "nat_perturbed_share": 0.6, "corruption_share": 0.6}):
        with pytest.raises(TypeError, match="nat_perturbed_share"):
            PgdAt(Adversary(Budget(steps=1)), moved_labelled=False, **options)


def test_joint_training_corrupts_natural_images_alone(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The last ones of those that go through the natural branch; attackers start from the images as they are."""
    x, y = quantise(batch[0]), batch[1]
    net, rng = AWNet(AWNetConfig(width=WIDTH, beta=1.0)).train(), KeyedRng.of(0, 0, 0, torch.arange(8))
    plain = PgdAt(Adversary(Budget(steps=1)), nat_batch_share=0.5).prepare(net, x, y, rng)
    step = PgdAt(Adversary(Budget(steps=1)), nat_batch_share=0.5, corruption_share=0.5).prepare(net, x, y, rng)
    assert torch.equal(step.x_adv, plain.x_adv)
    assert torch.equal(step.x, corrupted(x[:4], 0.5, rng[:4])) and torch.equal(step.x[:2], x[:2])


def bounded(**options: float) -> AWNet:
    torch.manual_seed(0)
    config = AWNetConfig(width=WIDTH, beta=1.0, extractor_frozen=False, mixing="bounded", **options)
    net = AWNet(config).train()
    for head in (*net.signal_heads, net.type_head):
        torch.nn.init.normal_(head.weight, std=0.5)
    return net


def answers(n: int = 8) -> Answers:
    generator = torch.Generator().manual_seed(2)
    return Answers(torch.randn(2, n, 10, generator=generator).half(), torch.arange(n) % 10)


def test_bounded_distillation_is_its_formula(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Both branches, the answers on x_adv, and the deployed mixture there with the natural branch as it is deployed."""
    x, y = batch
    net, rng = bounded(mixing_limit=0.4, mixing_temperature=2.0), KeyedRng.of(0, 0, 0, torch.arange(8))
    objective = BoundedDistillation(
        Adversary(Budget(steps=1)), answers(), distil=0.7, mixture_weight=0.3, label_smoothing=0.1
    )
    step = objective.prepare(net, x, y, rng)
    twin = copy.deepcopy(net)
    loss = objective.loss(net, step)
    assert net.training

    nat, adv, type_logits = branches(twin, step.x, step.x_adv)
    moved = {name: value for name, value in twin.state_dict().items() if "running" in name}
    for name, value in net.state_dict().items():  # each branch saw its own images, once
        if "running" in name:
            torch.testing.assert_close(value, moved[name])
    signals = twin.detect(torch.cat([step.x, step.x_adv]))
    twin.eval()
    with torch.no_grad():
        seen = twin.classify(step.x_adv, Signals(signals.type_logits, tuple(o[8:] for o in signals.omega)), "nat")
    p_nat = F.softmax(type_logits[8:], dim=1)[:, NATURAL : NATURAL + 1]
    p = (1 - 0.4 * p_nat) * F.softmax(2 * adv, dim=1) + 0.4 * p_nat * F.softmax(seen, dim=1)
    told = F.kl_div(F.log_softmax(adv, dim=1), F.softmax(step.targets[0], dim=1), reduction="batchmean")
    hard = F.cross_entropy(adv, y, label_smoothing=0.1)
    expected = {
        "nat": F.cross_entropy(nat, y, label_smoothing=0.1),
        "adv": 0.7 * told + 0.3 * hard,
        "type": type_loss(type_logits, 8),
        "mixture": F.nll_loss(p.log(), y),
    }
    assert loss.terms == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-3)
    total = expected["type"] + expected["nat"] + expected["adv"] + 0.3 * expected["mixture"]
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-3)
    loss.total.backward()
    assert {n.split(".")[0] for n, p in net.named_parameters() if p.grad is not None} == {
        "extractor",
        "type_head",
        "signal_heads",
        "stem",
        "blocks",
        "classifier",
    }


def test_answers_follow_the_image_and_whether_it_is_mirrored(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Not its place in the batch; answers to other images are an error before the first update."""
    told, index = answers(), torch.tensor([5, 2, 7, 0, 3, 1])
    rng = KeyedRng.of(0, 3, 0, index)
    found = told.to(index % 10, rng)
    assert rng.mirrored().any() and not rng.mirrored().all()
    for row, i, mirrored in zip(found, index, rng.mirrored(), strict=True):
        assert torch.equal(row, told.logits[int(mirrored), i].float())
    assert torch.equal(told.to(index[2:4] % 10, rng[2:4]), found[2:4])
    x, y = batch
    objective = BoundedDistillation(Adversary(Budget(steps=1)), told)
    for labels, numbers in ((y, torch.arange(8) + 1), (y.roll(1), torch.arange(8))):
        with pytest.raises(RecipeError, match=r"objective\.answers: the answers are of other images"):
            objective.prepare(bounded(), x, labels, KeyedRng.of(0, 0, 0, numbers))
    with pytest.raises(RecipeError, match="numbered images"):
        objective.prepare(bounded(), x, y)


def test_standard_is_cross_entropy(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """A static network's loss on clean images."""
    x, y = batch
    net = build_static(StaticConfig("vgg11_bn", WIDTH)).eval()
    assert Standard()(net, x, y).total.item() == pytest.approx(F.cross_entropy(net(x), y).item())


def test_a_wrong_inner_attack_is_refused() -> None:
    """A typo in a recipe must not train something else."""
    with pytest.raises(ValueError, match="start"):
        Adversary(start="gaussian")
    with pytest.raises(ValueError, match="shares"):
        Adversary(adv_branch_share=1.5)
    with pytest.raises(ValueError, match="shares"):
        Adversary(adv_branch_share=0.7, evading_share=0.7)
    with pytest.raises(ValueError, match="radii"):
        Adversary(evading_radii=(0.0, 1.0))
