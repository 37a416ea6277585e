"""What the objectives promise: the published balance, the paper's losses, adversaries of the deployed network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training.attacks import Budget
from training.awnet import AWNet, AWNetConfig
from training.objectives import (
    Balancer,
    DetectorPretraining,
    Inner,
    Mtard,
    PgdAt,
    Standard,
    branches,
    kl_divergence,
    type_loss,
)
from training.static import StaticConfig, build_static

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
    balancer = Balancer(eta=0.025)
    balancer.update(nat=2.0, adv=4.0)  # both relative losses are 1: 0.5 - 0.025 * (0.5 - 0.5)
    assert balancer.w_nat == pytest.approx(0.5)
    balancer.update(nat=1.0, adv=4.0)  # 0.5 and 1: 0.5 - 0.025 * (0.5 - 1/3) = 0.4958333
    assert balancer.w_nat == pytest.approx(0.4958333333, abs=1e-9)
    balancer.update(nat=1.0, adv=1.0)  # 0.5 and 0.25: w - 0.025 * (w - 2/3) = 0.5001041667
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


@pytest.mark.parametrize("forced, detached", [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.25, 0.5), (0.0, 1.0)])
def test_adversaries_stay_in_the_ball_and_leave_the_network_as_it_was(
    awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor], forced: float, detached: float
) -> None:
    """Any mixture of attackers gives one x_adv an image, inside eps, and has no side effect."""
    x, y = batch
    before = {k: v.clone() for k, v in awnet.state_dict().items()}
    awnet.train()
    x_adv = Inner(Budget(steps=2), forced=forced, detached=detached).adversaries(awnet, x, y)
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
        found.append(Inner(Budget(steps=3), detached=detached).adversaries(awnet, x, y))
    assert not torch.equal(found[0], found[1])


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
    loss = PgdAt(Inner(Budget(steps=1), forced=0.5), nat_eps=nat_eps)(awnet, *batch)
    loss.total.backward()
    for name, parameter in awnet.named_parameters():
        assert (parameter.grad is None) == name.startswith("extractor."), name
    assert set(loss.parts) == {"nat", "adv", "type"}


def test_mtard_distils_each_branch_from_its_teacher(awnet: AWNet, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Teachers never get a gradient, the balance is state that can be restored, a static student works too."""
    torch.manual_seed(1)
    teachers = [build_static(StaticConfig("resnet18", WIDTH)) for _ in range(2)]
    objective = Mtard(Inner(Budget(steps=1)), *teachers)
    awnet.train()
    loss = objective(awnet, *batch)
    loss.total.backward()
    assert all(p.grad is None for t in teachers for p in t.parameters())
    assert loss.parts["w_nat"] == 0.5
    again = Mtard(Inner(Budget(steps=1)), *teachers)
    again.load_state_dict(objective.state_dict())
    assert again.balancer.first == objective.balancer.first is not None
    static = build_static(StaticConfig("resnet18", WIDTH))
    assert torch.isfinite(objective(static.train(), *batch).total)


def test_detector_pretraining_touches_only_extractor_and_type_head(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Stage A: the trunk that is attacked stays as it is, statistics included."""
    net = AWNet(AWNetConfig(width=WIDTH, beta=1.0, extractor_frozen=False)).train()
    statistics = net.stem.nat.running_mean.clone()
    DetectorPretraining(Inner(Budget(steps=1)), noise=0.5)(net, *batch).total.backward()
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}
    assert trained == {"extractor", "type_head"}
    assert torch.equal(statistics, net.stem.nat.running_mean)


def test_standard_is_cross_entropy(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """A static network's loss on clean images."""
    x, y = batch
    net = build_static(StaticConfig("vgg11_bn", WIDTH)).eval()
    assert Standard()(net, x, y).total.item() == pytest.approx(F.cross_entropy(net(x), y).item())


def test_a_wrong_inner_attack_is_refused() -> None:
    """A typo in a recipe must not train something else."""
    with pytest.raises(ValueError, match="start"):
        Inner(start="gaussian")
    with pytest.raises(ValueError, match="shares"):
        Inner(forced=1.5)
