"""Adversarial weight perturbation: the published step, and weights that come back bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from training.attacks.ascent import Budget
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import StaticConfig, build_static
from training.trainer.adversary import Adversary
from training.trainer.awp import perturbed
from training.trainer.distillation import Mtard
from training.trainer.objectives import PgdAt, Trades
from training.trainer.step import Runtime, train_step

RUNTIME = Runtime(torch.device("cpu"), bf16=False)


def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(8, 3, 32, 32), torch.arange(8) % 10


def networks() -> dict[str, nn.Module]:
    return {"static": build_static(StaticConfig("resnet18", 4)), "awnet": AWNet(AWNetConfig(width=4, beta=1.0))}


@pytest.mark.parametrize("kind", ["static", "awnet"])
def test_weights_come_back_bit_for_bit_and_statistics_move_once(kind: str) -> None:
    """Even when the step fails inside; batch norms and the balance are as after one ordinary step."""
    net = networks()[kind].train()
    teacher = build_static(StaticConfig("resnet18", 4))
    objective = Mtard(Adversary(Budget(steps=1)), teacher, teacher)
    step = objective.prepare(net, *batch())
    plain, plain_objective = copy.deepcopy(net), copy.deepcopy(objective)
    plain_objective.loss(plain, step)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    statistics = {name: b.clone() for name, b in net.named_buffers()}
    with pytest.raises(RuntimeError, match="on purpose"), perturbed(net, objective, step, 0.01, RUNTIME.autocast()):
        assert any(not torch.equal(p, before[name]) for name, p in net.named_parameters())
        assert all(torch.equal(b, statistics[name]) for name, b in net.named_buffers())
        assert objective.balancer.first is None
        objective.loss(net, step)
        raise RuntimeError("on purpose")
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert all(p.grad is None for p in net.parameters())
    for (name, mine), (_, once) in zip(net.named_buffers(), plain.named_buffers(), strict=True):
        if name.endswith("num_batches_tracked"):
            assert torch.equal(mine, once), name
    assert objective.balancer.w_nat == 0.5 and objective.balancer.first is not None


@pytest.mark.parametrize("kind", ["static", "awnet"])
def test_each_filter_bank_moves_by_gamma_of_its_norm_uphill(kind: str) -> None:
    """Layer by layer: |v| = gamma |w| along the gradient of the step's loss; biases and batch norms stay."""
    net = networks()[kind].train()
    objective = Trades(Adversary(Budget(steps=1)))
    step = objective.prepare(net, *batch())
    other = copy.deepcopy(net)
    objective.loss(other, step).total.backward()
    slopes = {name: p.grad for name, p in other.named_parameters()}
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    lower = objective.loss(copy.deepcopy(net), step).total.item()
    with perturbed(net, objective, step, 0.005, RUNTIME.autocast()) as moves:
        for name, p in net.named_parameters():
            slope, w = slopes[name], before[name]
            if p.dim() == 1 or slope is None:
                assert torch.equal(p, w) and name not in moves, name
            elif w.norm() > 0 and slope.norm() > 1e-6:
                expected = w + 0.005 * w.norm() * slope / slope.norm()
                torch.testing.assert_close(p.detach(), expected, rtol=1e-3, atol=1e-6)
        higher = objective.loss(net, step).total.item()
    assert higher > lower


def test_a_step_moves_the_original_weights_by_the_gradient_at_the_perturbed_ones() -> None:
    """SGD at rate r: w - r * gradient(w + v), written out with a second copy of the network; 0 is plain training."""
    net = networks()["static"].train()
    objective = PgdAt(Adversary(Budget(steps=1)))
    x, y = batch()
    start = copy.deepcopy(net)
    torch.manual_seed(4)
    train_step(net, objective, torch.optim.SGD(net.parameters(), lr=0.1), x, y, RUNTIME, awp=0.05)

    def by_hand(gamma: float) -> dict[str, Tensor]:
        torch.manual_seed(4)
        step = objective.prepare(start, x, y)
        slope, moved = copy.deepcopy(start), copy.deepcopy(start)
        objective.loss(slope, step).total.backward()
        with torch.no_grad():
            for p, q in zip(slope.parameters(), moved.parameters(), strict=True):
                if p.dim() > 1:
                    q.add_(gamma * q.norm() * p.grad / p.grad.norm())
        objective.loss(moved, step).total.backward()
        gradients = {n: p.grad for n, p in moved.named_parameters()}
        return {n: p - 0.1 * gradients[n] for n, p in start.named_parameters()}

    with_awp, without = by_hand(0.05), by_hand(0.0)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p, with_awp[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(with_awp[n], without[n], atol=1e-4) for n in without)
    plain = copy.deepcopy(start)
    torch.manual_seed(4)
    train_step(plain, objective, torch.optim.SGD(plain.parameters(), lr=0.1), x, y, RUNTIME)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(p, without[name], rtol=1e-4, atol=1e-5)


def test_bfloat16_sees_the_perturbed_weights() -> None:
    """Autocast keeps low-precision copies of weights; a perturbation inside its region would not be seen."""
    net = networks()["static"].train()
    runtime = Runtime(torch.device("cpu"), bf16=True)
    objective = PgdAt(Adversary(Budget(steps=1)))
    step = objective.prepare(net, *batch())
    with runtime.autocast():
        plain = objective.loss(copy.deepcopy(net), step).total.item()
    with perturbed(net, objective, step, 0.5, runtime.autocast()), runtime.autocast():
        assert objective.loss(net, step).total.item() > plain + 0.1
