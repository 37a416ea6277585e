"""Attacks keep their budget, do what their papers say, and agree with Foolbox."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

from training.attacks.ascent import (
    Budget,
    ascend,
    cross_entropy,
    margin,
    normal_start,
    project,
    quantise,
    uniform_start,
)
from training.attacks.autoattack import autoattack
from training.attacks.catalogue import ATTACKS, Attack
from training.attacks.pgd import adaptive, fgsm, pgd_restarts, pgd_sat, pgd_trades

EPS = 8 / 255
NAMES = sorted(ATTACKS)


@pytest.fixture
def model() -> nn.Module:
    """A small smooth classifier whose gradients are nowhere zero."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 3 * 3, 10)).eval()


@pytest.fixture
def batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    """8-bit images, some pixels at the ends of the range, and the classes that the model gives them."""
    x = quantise(torch.rand(8, 3, 8, 8) * 1.2 - 0.1).clamp(0, 1)
    return x, model(x).argmax(1)


def parts(name: str) -> tuple[Attack, Budget]:
    return ATTACKS[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("eps", [1 / 255, EPS])
def test_every_attack_stays_in_its_ball(name: str, eps: float, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Within eps of x, within [0, 1], detached; neither x nor the model's gradients are touched; 8 bits stay inside."""
    x, y = batch
    before = x.clone()
    attack, budget = parts(name)
    x_adv = attack(model, x, y, Budget(eps, budget.step, 5))
    for z in (x_adv, quantise(x_adv)):
        assert float((z - x).abs().max()) <= eps + 1e-6
        assert float(z.min()) >= 0 and float(z.max()) <= 1
    found = name == "square" or not torch.equal(x_adv, x)  # Square gives back what it cannot turn
    assert found and not x_adv.requires_grad
    assert torch.equal(x, before) and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("autoattack", "square")])  # which need four classes
def test_every_attack_reaches_the_optimum_of_a_linear_model(name: str) -> None:
    """For two linear logits the worst point of the ball is known: eps against the sign of the weights."""
    weight = torch.randn(3 * 4 * 4)

    def linear(z: Tensor) -> Tensor:
        score = z.flatten(1) @ weight
        return torch.stack([-score, score], dim=1)

    x = quantise(torch.rand(4, 3, 4, 4) * 0.8 + 0.1)
    y = torch.tensor([0, 1, 0, 1])
    worst = x + EPS * torch.where(y == 0, 1.0, -1.0)[:, None, None, None] * weight.sign().view(1, 3, 4, 4)
    attack, budget = parts(name)
    budget = Budget(budget.eps, budget.step, min(budget.steps, 30), min(budget.restarts, 2))
    torch.testing.assert_close(attack(linear, x, y, budget), worst, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["pgd_sat", "pgd_trades", "cw_inf"])
def test_iterations_do_not_make_an_attack_weaker(name: str, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Twenty steps reach at least the margin of one step of FGSM, up to a hair."""
    x, y = batch
    attack, budget = parts(name)
    many = margin(model(attack(model, x, y, budget)), y)
    one = margin(model(fgsm(model, x, y, budget)), y)
    assert float((many - one).detach().mean()) > -1e-3


def test_the_table_has_the_papers_budgets() -> None:
    """Sec. 5.3: eps 8/255 throughout; FGSM one step of 8/255, PGD 20 of 2/255, CW 30 of 2/255."""
    ours = ("pgd_restarts", "autoattack", "square")
    found = {name: (b.eps, b.step, b.steps) for name, (_, b) in ATTACKS.items() if name not in ours}
    assert found == {
        "fgsm": (EPS, EPS, 1),
        "pgd_sat": (EPS, 2 / 255, 20),
        "pgd_trades": (EPS, 2 / 255, 20),
        "cw_inf": (EPS, 2 / 255, 30),
        "adaptive": (EPS, 2 / 255, 20),
    }


def test_restarts_keep_the_best_try_of_each_image(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Image by image at least the margin that the last, rounded iterate of each of the same random starts has."""
    x, y = batch
    budget = Budget(EPS, 2 / 255, 2, 4)
    torch.manual_seed(5)
    together = margin(model(pgd_restarts(model, x, y, budget)), y)
    torch.manual_seed(5)
    alone = torch.stack([margin(model(quantise(pgd_sat(model, x, y, budget))), y) for _ in range(4)])
    assert bool((together >= alone.amax(0)).all()) and len(set(alone.argmax(0).tolist())) > 1


class Watched(nn.Module):
    """A classifier with a detector: pixels of the upper half decide the class, those of the lower half the type."""

    def forward(self, x: Tensor) -> Tensor:
        return self.with_type(x)[0]

    def with_type(self, x: Tensor) -> tuple[Tensor, Tensor]:
        upper, lower = x[:, :, :4].flatten(1).sum(1), x[:, :, 4:].flatten(1).sum(1)
        return torch.stack([upper, -upper], 1), torch.stack([lower, -lower], 1)


def test_the_adaptive_attack_ascends_class_and_type_loss(model: nn.Module) -> None:
    """Sec. 5.9 with Eq. 24: the lower half darkens too, which plain PGD leaves alone; no detector, plain PGD."""
    x, y = torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, dtype=torch.long)
    x_adv = adaptive(Watched(), x, y, Budget())
    torch.testing.assert_close(x_adv, x - EPS)
    plain = pgd_trades(Watched(), x, y, Budget())
    torch.testing.assert_close(plain[:, :, :4], x[:, :, :4] - EPS)
    assert float((plain[:, :, 4:] - x[:, :, 4:]).abs().max()) < 0.01
    torch.manual_seed(2)
    without = adaptive(model, x, y, Budget(steps=3))
    torch.manual_seed(2)
    assert torch.equal(without, pgd_trades(model, x, y, Budget(steps=3)))


def test_autoattack_is_at_least_as_strong_as_pgd_and_leaves_the_random_numbers_alone(
    model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    """On a model that PGD breaks in part; what it cannot break comes back unchanged; the same seed, the same images."""
    x, y = batch
    budget = Budget(2 / 255, 0.5 / 255, 10)
    broken = model(pgd_sat(model, x, y, budget)).argmax(1) != y
    torch.manual_seed(3)
    x_adv = autoattack(model, x, y, budget)
    after = torch.rand(())
    lost = model(x_adv).argmax(1) != y
    assert (lost | ~broken).all() and torch.equal(x_adv[~lost], x[~lost])
    assert all(p.grad is None for p in model.parameters())
    torch.manual_seed(3)
    assert torch.equal(autoattack(model, x, y, budget), x_adv) and torch.equal(torch.rand(()), after)


def test_autoattack_refuses_three_classes(batch: tuple[Tensor, Tensor]) -> None:
    """Its DLR loss is not defined there."""
    x, y = batch
    with pytest.raises(ValueError, match="four classes"):
        autoattack(lambda z: z.flatten(1)[:, :3], x, y % 3, Budget())


def test_margin_by_hand() -> None:
    """Best wrong logit minus the true one; positive where misclassified."""
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 0.0]])
    assert torch.equal(margin(logits, torch.tensor([1, 1])), torch.tensor([-1.0, 4.0]))


def test_starts_are_where_the_papers_put_them() -> None:
    """Madry's start fills the ball, the TRADES start stays within a few thousandths."""
    x = torch.full((64, 3, 8, 8), 0.5)
    wide, narrow = (uniform_start(x, EPS) - x).abs(), normal_start(x) - x
    assert float(wide.max()) <= EPS + 1e-6 and float(wide.mean()) == pytest.approx(EPS / 2, rel=0.05)
    assert float(narrow.std()) == pytest.approx(0.001, rel=0.05)
    assert float(uniform_start(torch.ones(1, 3, 8, 8), EPS).max()) <= 1


def test_projection_by_hand() -> None:
    """Into the ball first, then into the range of pixels."""
    x, far = torch.tensor([0.5, 0.01, 0.99]), torch.tensor([0.9, -0.9, 1.5])
    torch.testing.assert_close(project(far, x, 0.1), torch.tensor([0.6, 0.0, 1.0]))


@pytest.mark.parametrize("wrong", [(0, 0.1, 1), (1.5, 0.1, 1), (0.1, 0, 1), (0.1, 0.1, 0), (0.1, 0.1, 1, 0)])
def test_an_impossible_budget_is_refused(wrong: tuple[float, float, int]) -> None:
    """No radius, no step or no steps is a slip, not an attack."""
    with pytest.raises(ValueError, match="budget"):
        Budget(*wrong)


def foolbox_attack(attack: object, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    foolbox = pytest.importorskip("foolbox")
    victim = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, clipped, _ = attack(victim, x, y, epsilons=EPS)  # type: ignore[operator]
    return clipped


def test_fgsm_agrees_with_foolbox(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """The same image to float32 rounding (1e-6)."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    attacks = pytest.importorskip("foolbox.attacks")
    x, y = batch
    theirs = foolbox_attack(attacks.LinfFastGradientAttack(random_start=False), model, x, y)
    torch.testing.assert_close(fgsm(model, x, y, Budget()), theirs, rtol=0, atol=1e-6)


def test_pgd_agrees_with_foolbox_from_the_same_start(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Ten steps from x: at least 99.5 % of the values equal to 1e-6.

    The rest may differ by steps, where a gradient is so close to zero that rounding decides its sign.
    """
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    attacks = pytest.importorskip("foolbox.attacks")
    x, y = batch
    pgd = attacks.LinfProjectedGradientDescentAttack(abs_stepsize=2 / 255, steps=10, random_start=False)
    theirs = foolbox_attack(pgd, model, x, y)
    ours = ascend(lambda z: cross_entropy(model(z), y), x, x, Budget(steps=10))
    assert float(((ours - theirs).abs() <= 1e-6).double().mean()) >= 0.995


def test_pgd_from_a_random_start_is_as_strong_as_foolbox(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Mean loss reached after 20 steps within 1 % of Foolbox's, whose random numbers are its own."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    attacks = pytest.importorskip("foolbox.attacks")
    x, y = batch
    theirs = foolbox_attack(attacks.LinfProjectedGradientDescentAttack(abs_stepsize=2 / 255, steps=20), model, x, y)
    ours = pgd_sat(model, x, y, Budget(steps=20))
    reached = [float(cross_entropy(model(z), y).mean()) for z in (ours, theirs)]
    assert reached[0] == pytest.approx(reached[1], rel=0.01)
    assert reached[0] > float(cross_entropy(model(x), y).mean())
