"""Every point of the frontier is attacked until it is beaten or done; what is lost is lost as deployed."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from training.attacks.ascent import quantise
from training.evaluation import frontier as room
from training.evaluation.frontier import ELSEWHERE, WRONG_AS_IT_IS, Frontier, Standing, beaten, next_point, who_broke
from training.evaluation.points import FIXED, Point, grid, outputs_of
from training.networks.awnet import AWNet, AWNetConfig

EPS, STEPS = 2 / 255, 3


@cache
def small() -> tuple[AWNet, Tensor, Tensor]:
    """An AW-Net whose branches disagree, 8-bit images, and the classes that one point gives them."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = AWNet(AWNetConfig(width=4)).eval().requires_grad_(False)
    for name, buffer in net.named_buffers():
        if name.endswith("adv.running_mean"):
            buffer.normal_(0, 0.001, generator=generator)
    for head in (*net.signal_heads, net.type_head):
        head.weight.normal_(0, 2, generator=generator)
    net.classifier.weight.mul_(300)
    x = quantise(torch.rand(12, 3, 16, 16, generator=generator))
    net.classifier.bias.sub_((net(x, "adv") + net(x, "nat")).mean(0) / 2)
    return net, x, Point("auto", "bounded", 0.4, 1.0).network(net)(x).argmax(1)


def search(limits: tuple[float, ...] = (0.3, 0.49), kept: dict | None = None) -> Frontier:
    net, x, y = small()
    points = grid(limits, (1.0, 3.0))
    outputs = outputs_of(net, [x])
    clean = [float((p.logits(outputs).argmax(1) == y).double().mean()) for p in points]
    return Frontier(net, points, clean, x, y, EPS, STEPS, batch_size=5, kept=kept)


def finish(frontier: Frontier, runs: int | None = None) -> Frontier:
    while runs is None or runs > 0:
        if frontier.step() is None:
            return frontier
        runs = None if runs is None else runs - 1
    return frontier


@pytest.mark.parametrize("point", [*FIXED, Point("auto", "bounded", 0.4, 2.0)], ids=lambda point: point.name)
def test_a_point_says_what_its_network_says(point: Point) -> None:
    """Logits that are put together from cached branches are those that a served network of that point would give."""
    net, x, _ = small()
    config = net.config
    torch.testing.assert_close(point.logits(outputs_of(net, [x[:5], x[5:]])), point.network(net)(x))
    assert net.config == config and torch.equal(point.network(net).type_logits(x), net.type_logits(x))


def test_a_grid_has_the_modes_first_and_no_point_twice() -> None:
    assert grid([0.4, 0.4], [1.0]) == [*FIXED, Point("auto", "bounded", 0.4, 1.0)]
    assert len({p.name for p in grid([0.3, 0.4], [1.0, 2.0])}) == 7


def test_a_beaten_point_is_not_attacked_until_what_beat_it_falls() -> None:
    """Equal points stand once; fixed points are measured whatever beats them, and beat nobody."""
    high, low = Standing(0.9, 0.3, 2, 2), Standing(0.8, 0.4, 0, 2)
    worse = Standing(0.8, 0.2, 0, 2)
    assert [beaten([high, low, worse], i) for i in range(3)] == [False, False, True]
    assert next_point([high, low, worse]) == 1
    assert next_point([high, worse]) is None
    fallen = Standing(0.9, 0.1, 2, 2)
    assert next_point([fallen, worse]) == 1, "what beat it has less now"
    twin = Standing(0.9, 0.3, 0, 2)
    assert [beaten([high, twin], i) for i in range(2)] == [False, True]
    fixed = Standing(0.5, 0.0, 0, 2, fixed=True)
    assert next_point([high, fixed]) == 1
    assert not beaten([Standing(1.0, 1.0, 2, 2, fixed=True), low], 1)


def test_the_points_take_turns() -> None:
    """The one with the fewest attacks is next, the cleanest of those first: bounds fall together."""
    standings = [Standing(0.9, 0.3, 1, 3), Standing(0.8, 0.4, 0, 3), Standing(0.85, 0.35, 0, 3)]
    assert next_point(standings) == 2


def test_what_is_lost_is_misclassified_by_the_network_of_that_point() -> None:
    """For every point, also where the image was found at another one: 8 bits, in the ball, and wrong as deployed."""
    net, x, y = small()
    done = finish(search())
    for one in done.attacked:
        z = one.best.x_adv
        assert torch.equal(z, quantise(z)) and float((z - x).abs().max()) <= EPS + 1e-6
        wrong = one.point.network(net)(z).argmax(1) != y
        assert torch.equal(wrong, one.best.margin > 0)
        assert one.left == float((~wrong).double().mean())
        assert torch.equal(one.by >= 0, wrong & (one.by != ELSEWHERE) & (one.by != WRONG_AS_IT_IS))
        assert sum(who_broke(one).values()) == len(y)
    assert any(ELSEWHERE in one.by for one in done.attacked), "no image was ever shared"
    assert all(s.finished or beaten(done.standings(), i) for i, s in enumerate(done.standings()))


def test_a_search_that_was_stopped_ends_as_one_that_was_not() -> None:
    whole, part = finish(search()), finish(search(), runs=4)
    resumed = finish(search(kept=part.state()))
    for one, other in zip(whole.attacked, resumed.attacked, strict=True):
        assert torch.equal(one.best.x_adv, other.best.x_adv) and torch.equal(one.by, other.by) and one.run == other.run


def test_points_that_come_later_begin_with_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another grid goes on from the same state, and keeps what it does not ask for."""
    before = finish(search()).state()
    later = search(limits=(0.45,), kept=before)
    new = next(one for one in later.attacked if one.point.limit == 0.45)
    assert ELSEWHERE in new.by and new.run == 0
    assert before.keys() < later.state().keys()
    monkeypatch.setattr(room, "climb", None)  # the fixed points are done
    assert [one.run == len(one.members) for one in later.attacked if one.point.fixed] == [True] * 3
