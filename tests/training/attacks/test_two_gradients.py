"""Two gradients against linear targets, for which the best that any attacker can reach is known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.attacks.ascent import Budget, normalised
from training.attacks.evasion import EVASIONS, Evasion
from training.attacks.search import Seen, Walk, search
from training.attacks.two_gradients import Orthogonal, TwoGradients, gradients, without
from training.networks.network import Branch

GREY = 128 / 255


def channel(z: Tensor, c: int) -> Tensor:
    """How far a channel's mean lies over mid grey, in grey levels."""
    return (z[:, c].mean((1, 2)) - GREY) * 255


class Linear:
    """Class 1 from `demand` levels of channels 0 and 1 together; flagged where channel 0 less half of 2 exceeds 3.

    In a ball of r levels channel 1 gives r, and channel 0 may go to 3 + r / 2 where channel 2 goes to r: so
    the most that goes unflagged is `Linear.most(r)` in all. Its log-odds are `steepness` times as steep as its class.
    """

    def __init__(self, demand: float, steepness: float = 500.0) -> None:
        self.demand, self.steepness = demand, steepness

    @staticmethod
    def most(radius: float) -> float:
        return radius + min(radius, 3 + radius / 2)

    def judge(self, z: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.see(z, None)
        return seen.logits, seen.score

    def see(self, z: Tensor, branch: Branch | None) -> Seen:
        over = channel(z, 0) + channel(z, 1) - self.demand
        logits = torch.stack([-over, over], dim=1)
        log_odds = self.steepness * (channel(z, 0) - channel(z, 2) / 2 - 3)
        return Seen(logits.detach(), log_odds.detach().sigmoid(), logits, log_odds)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.full((4, 3, 4, 4), GREY), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize("radius", [2, 4, 8, 16])
@pytest.mark.parametrize("steepness", [0.01, 1.0, 500.0])
def test_two_gradients_reach_the_optimum_and_nothing_beyond(
    radius: int, steepness: float, batch: tuple[Tensor, Tensor]
) -> None:
    """Half a level under the most that goes unflagged is found at every radius and scale, half over it never."""
    budget = Budget(eps=radius / 255, steps=80)
    for demand, possible in ((Linear.most(radius) - 0.5, True), (Linear.most(radius) + 0.5, False)):
        found = search(Linear(demand, steepness), *batch, budget, TwoGradients(), threshold=0.5)
        assert bool((found.success(0.5) == possible).all()), (demand, found.score)


def test_a_sum_of_losses_is_led_by_the_steeper_one(batch: tuple[Tensor, Tensor]) -> None:
    """What the norms are for: cross-entropy plus the steep type margin never reaches the class."""
    target = Linear(Linear.most(8) - 0.5)
    assert not bool(search(target, *batch, Budget(steps=80), Evasion(weight=1.0), 0.5).success(0.5).any())
    assert bool(search(target, *batch, Budget(steps=80), TwoGradients(), 0.5).success(0.5).all())


def test_the_weight_follows_what_each_image_lacks() -> None:
    """A step leans to the class for the image that is classified rightly, to the score for the one that is not."""
    x = torch.full((2, 3, 4, 4), GREY)
    z = (x + torch.tensor([0.0, 8 / 255])[:, None, None, None]).requires_grad_(True)
    seen = Linear(4).see(z, None)
    walk = Walk(z.detach(), torch.zeros_like(x), torch.zeros(2))
    how = TwoGradients()
    after = how.step(0, walk, z, seen, x, torch.zeros(2, dtype=torch.long), Budget(steps=80))
    assert after.lean.tolist() == pytest.approx([how.rate, -how.rate])


def test_steps_shrink_to_a_quarter_of_a_level_and_add_up() -> None:
    """From two levels to a quarter; the walk stands between grey levels, where rounding each step would freeze it."""
    x, y = torch.full((1, 3, 4, 4), GREY), torch.zeros(1, dtype=torch.long)
    moves, budget, how = [], Budget(eps=1.0, steps=80), TwoGradients()
    walk = Walk(x, torch.zeros_like(x), torch.zeros(1))
    for i in range(budget.steps):
        z = ((walk.at * 255).round() / 255).requires_grad_(True)
        after = how.step(i, walk, z, Linear(1000).see(z, None), x, y, budget)
        moves.append(255 * float((after.at - walk.at).abs().max()))
        walk = after._replace(at=x)  # away from the borders
    assert moves[0] == pytest.approx(2, rel=1e-3) and moves[-1] == pytest.approx(0.25, rel=1e-3)
    assert moves == sorted(moves, reverse=True)


def test_an_aim_asks_for_one_class() -> None:
    """The class that is so far from the true one, whatever other class is nearer; any class without an aim."""
    logits, y = torch.tensor([[3.0, 2.0, -1.0]] * 2), torch.tensor([0, 2])
    assert TwoGradients().distance(logits, y).tolist() == [-1.0, 4.0]
    assert TwoGradients(aim=2).distance(logits, y).tolist() == [-4.0, 3.0]
    assert TwoGradients(aim=1).distance(logits, y).tolist() == [-1.0, 4.0]


def test_orthogonal_pgd_goes_for_one_and_leaves_the_other() -> None:
    """Equation 6 of the paper: until misclassified the class's gradient without its part along the score's, then vice
    versa; so a small step of either leaves the other loss as it is."""
    x, y = torch.full((2, 3, 4, 4), GREY), torch.zeros(2, dtype=torch.long)
    z = (x + torch.tensor([0.0, 6 / 255])[:, None, None, None]).requires_grad_(True)
    seen = Linear(4.0, steepness=1.0).see(z, None)
    of_class, of_score = gradients(seen.attacked[:, 1], seen, z)
    assert float((of_class * of_score).sum()) != 0
    for one, other in ((of_class, of_score), (of_score, of_class)):
        kept = without(one, other)
        assert bool(((kept * other).flatten(1).sum(1).abs() < 1e-5 * (one * other).flatten(1).sum(1).abs()).all())
        assert bool(((kept * one).flatten(1).sum(1) > 0).all())
    walk = Walk(z.detach(), torch.zeros_like(x), torch.zeros(2))
    after = Orthogonal().step(0, walk, z, Linear(4.0, steepness=1.0).see(z, None), x, y, Budget())
    moved = (after.at - z.detach()).sign()
    assert torch.equal(moved[0], without(of_class, of_score)[0].sign())
    assert torch.equal(moved[1], without(of_score, of_class)[1].sign())


def test_a_gradient_of_zero_stays_zero() -> None:
    """No direction is made up, and nothing becomes NaN."""
    zero = torch.zeros(2, 3, 4, 4)
    assert torch.equal(normalised(zero), zero) and torch.equal(without(zero, zero), zero)


@pytest.mark.parametrize("name", ["orthogonal", "selective_published"])
def test_the_published_attacks_are_themselves(name: str, batch: tuple[Tensor, Tensor]) -> None:
    """100 steps of one grey level on the deployed network, as in their code."""
    how = EVASIONS[name]
    assert (how.branch, how.steps) == (None, 100)
    assert bool(search(Linear(6.0, 1.0), *batch, Budget(steps=100), how, 0.5).success(0.5).all())
