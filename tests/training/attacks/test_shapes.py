"""Bounded in L2, in pixels or in a patch: linear networks, for which the best attack is known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.attacks.ascent import Model, norm, quantise
from training.attacks.copies import attackers_copy
from training.attacks.shapes import L2, SHAPES, Patch, Shape, Sparse, shaped
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.network import Signals

GREY = 128 / 255


def linear(weight: Tensor, demand: float) -> Model:
    """Class 1 where `weight` [3,8,8] times the change from mid grey exceeds `demand`."""

    def model(x: Tensor) -> Tensor:
        over = ((x - GREY) * weight).sum((1, 2, 3)) - demand
        return torch.stack([-over, over], dim=1)

    return model


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.full((4, 3, 8, 8), GREY), torch.zeros(4, dtype=torch.long)


def most(shape: Shape, weight: Tensor) -> float:
    """The largest sum of weight times change that the shape allows around mid grey."""
    room = weight.abs() * torch.where(weight > 0, 127 / 255, 128 / 255)
    if isinstance(shape, L2):
        return shape.radius * float(norm(weight[None]))
    if isinstance(shape, Sparse):
        return float(room.sum(0).flatten().topk(shape.pixels).values.sum())
    assert isinstance(shape, Patch)
    return float(room.sum())


@pytest.mark.parametrize("shape", [L2(0.5), L2(1.0), Sparse(1), Sparse(6), Patch(8)], ids=str)
def test_the_optimum_is_reached_and_nothing_beyond(shape: Shape, batch: tuple[Tensor, Tensor]) -> None:
    """A demand 3 % under the most that is possible is met by all images, one 1 % over it by none."""
    weight = torch.randn(3, 8, 8)
    reached = shaped(linear(weight, 0.97 * most(shape, weight)), *batch, shape)
    assert bool((reached.margin > 0).all()), reached.margin
    beyond = shaped(linear(weight, 1.01 * most(shape, weight)), *batch, shape, restarts=2)
    assert not bool((beyond.margin > 0).any())


def test_a_patch_reaches_the_optimum_of_its_place(batch: tuple[Tensor, Tensor]) -> None:
    """All of the square at its bounds; other tries look at other places."""
    x, y = batch
    weight = torch.zeros(3, 8, 8)
    weight[:, 2:6, 2:6] = 1.0  # the best place holds 9 of these pixels, the worst one 1
    model = linear(weight, 0.99 * 27 * 127 / 255)
    assert not bool((shaped(model, x, y, Patch(3), steps=20).margin > 0).all())
    assert bool((shaped(model, x, y, Patch(3), steps=20, restarts=60).margin > 0).all())


@pytest.mark.parametrize("shape", [*SHAPES.values(), L2(0.05)], ids=str)
@pytest.mark.parametrize("restarts", [1, 2])
def test_what_is_found_is_an_8_bit_image_of_that_shape(shape: Shape, restarts: int) -> None:
    """Rounded inside, not afterwards: whole grey levels, within the bound, in [0,1], and the margin is that image's."""
    x, y = quantise(torch.rand(6, 3, 8, 8)), torch.zeros(6, dtype=torch.long)
    model = linear(torch.randn(3, 8, 8), 1000.0)
    found = shaped(model, x, y, shape, steps=12, restarts=restarts)
    delta = found.x_adv - x
    torch.testing.assert_close(found.x_adv * 255, (found.x_adv * 255).round(), rtol=0, atol=1e-4)
    assert float(found.x_adv.min()) >= 0 and float(found.x_adv.max()) <= 1
    assert bool((delta.flatten(1) != 0).any(1).all())
    changed = (delta != 0).any(1)
    if isinstance(shape, L2):
        assert float(norm(delta).max()) <= shape.radius * (1 + 1e-5)
    elif isinstance(shape, Sparse):
        assert int(changed.flatten(1).sum(1).max()) <= shape.pixels
    else:
        for side in (changed.any(1), changed.any(2)):
            where = [row.nonzero() for row in side]
            assert max(int(at.max() - at.min()) for at in where) < shape.side
    logits = model(found.x_adv)
    torch.testing.assert_close(found.margin, logits[:, 1] - logits[:, 0])


def test_rounding_costs_an_l2_attack_little() -> None:
    """The 8-bit image uses nearly all of the radius, at 0.5 and where whole levels are coarse."""
    x = torch.full((4, 3, 32, 32), GREY)
    for radius, used in ((0.5, 0.97), (0.1, 0.8)):
        z = L2(radius).fit(x + radius * torch.randn_like(x), x)
        assert float(norm(L2(radius).rounded(z, x) - x).min()) > used * radius


def test_a_patch_larger_than_the_image_is_refused(batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="9 pixels"):
        shaped(linear(torch.ones(3, 8, 8), 1.0), *batch, Patch(9))


def test_the_judge_is_the_deployed_network_whatever_is_differentiated() -> None:
    """An attacker's copy with a branch forced gives gradients; the margin kept is that of plain evaluation."""
    net = AWNet(AWNetConfig(width=4)).eval().requires_grad_(False)
    x = quantise(torch.rand(3, 3, 32, 32))
    signals: Signals = net.detect(x)
    y = net.classify(x, signals).argmax(1)
    found = shaped(attackers_copy(net, "nat"), x, y, L2(1.0), steps=3)
    logits = net(found.x_adv)
    wrong = logits.argmax(1) != y
    assert torch.equal(wrong, found.margin > 0)


def test_a_second_copy_goes_on_where_the_first_one_failed(batch: tuple[Tensor, Tensor]) -> None:
    """What one attacker's copy broke is left alone, and what resists is attacked on."""
    x, y = batch
    weight = torch.randn(3, 8, 8)
    best = shaped(linear(weight, 0.9 * most(L2(0.5), weight)), x, y, L2(0.5), steps=1)
    assert not bool((best.margin > 0).any())
    again = shaped(linear(weight, 0.9 * most(L2(0.5), weight)), x, y, L2(0.5), best=best)
    assert again is best and bool((best.margin > 0).all())
