"""The best iterate is what counts, and the worst case is no weaker than anything that it consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from copy import copy as shallow
from functools import cache

import pytest
import torch
from torch import Tensor

from training.attacks.ascent import Budget, cross_entropy, margin, quantise, uniform_start, whole_levels
from training.attacks.autoattack import autoattack
from training.attacks.best import BestIterate
from training.attacks.catalogue import ATTACKS
from training.attacks.copies import attackers_copy
from training.attacks.pgd import pgd_restarts, pgd_sat
from training.attacks.worst_case import (
    DETECTING,
    MISSED,
    STATIC,
    WRONG_AS_IT_IS,
    Member,
    WorstCase,
    broken_first_by,
    checkpoints,
    members_of,
    worst_case,
)
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.network import InMode, Network

from .toys import Linear, Lure, Switch

EPS = 8 / 255
GREY = torch.full((3, 3, 4, 4), 128 / 255)
ZEROS = torch.zeros(3, dtype=torch.long)


@cache
def small() -> tuple[AWNet, Tensor, Tensor]:
    """An AW-Net of width 4 whose detector decides something, 8-bit images, and classes: those that it gives them.

    Its logits lie around 0 on these images, so that classes differ and one grey level changes some of them.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = AWNet(AWNetConfig(width=4)).eval().requires_grad_(False)
    for head in (*net.signal_heads, net.type_head):
        head.weight.normal_(0, 2, generator=generator)
    net.classifier.weight.mul_(1000)
    x = quantise(torch.rand(12, 3, 16, 16, generator=generator))
    net.classifier.bias.sub_(net(x).mean(0))
    return net, x, net(x).argmax(1)


def lost(net: Network, x_adv: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = net(x_adv).argmax(1) != y
    return found


def all_judged(net: Network, y: Tensor, attack: Callable[[], WorstCase | Tensor]) -> tuple[WorstCase | Tensor, float]:
    """What `attack` returns, and the largest margin among all that the network answered meanwhile for one image."""
    answers: list[float] = []
    forward = net.forward

    def recorded(z: Tensor) -> Tensor:
        logits = forward(z)
        assert torch.equal(z, quantise(z)), "only 8-bit images are judged"
        answers.append(float(margin(logits.detach(), y)))
        return logits

    net.forward = recorded  # type: ignore[method-assign]
    try:
        return attack(), max(answers)
    finally:
        del net.forward


def test_the_last_iterate_of_a_toy_is_worse_and_the_best_one_is_kept() -> None:
    """The toy is misclassified between 2 and 4 levels; PGD at T1 runs past, its best iterate stays there."""
    net = Lure().eval()
    copy = attackers_copy(net, "T1")
    budget = Budget(EPS, 1 / 255, 20, 1)
    assert not bool(lost(net, quantise(pgd_sat(copy, GREY, ZEROS, budget)), ZEROS).any())
    assert bool(lost(net, pgd_restarts(copy, GREY, ZEROS, budget), ZEROS).all())


@pytest.mark.parametrize("copy", ["T1", "T2", "nat", "adv", "half"])
@pytest.mark.parametrize("eps", [1 / 255, 3 / 255])
def test_the_best_iterate_is_never_behind_the_last(copy: str, eps: float) -> None:
    """On every image, in the margin of the deployed network at 8 bits; and x itself is never beaten by an attack."""
    net, x, y = small()
    model = attackers_copy(net, copy)
    best, budget = BestIterate(net, x, y), Budget(eps, eps / 2, 8)
    last = best.ascend(lambda z: cross_entropy(model(z), y), x, uniform_start(x, eps), budget)
    reached, at_last, at_x = (margin(net(z), y) for z in (best.x_adv, quantise(last), x))
    torch.testing.assert_close(best.margin, reached, rtol=1e-4, atol=1e-4)
    assert bool((reached >= at_last - 1e-4).all()) and bool((reached >= at_x - 1e-4).all())
    assert bool((reached > at_last + 1e-3).any()), "otherwise this shows nothing"


@pytest.mark.parametrize("member", DETECTING)
def test_what_is_kept_is_the_best_of_all_that_was_asked(member: Member) -> None:
    """Restarts too: whatever 8-bit image the network answered during the search, none had a larger margin."""
    net, x, y = small()
    x, y = x[:1], y[:1]
    found, largest = all_judged(net, y, lambda: worst_case(net, x, y, Budget(1 / 255, steps=6, restarts=2), [member]))
    assert isinstance(found, WorstCase)
    assert float(found.margin) >= largest - 1e-5
    torch.testing.assert_close(found.margin, margin(net(found.nearest), y), rtol=1e-4, atol=1e-5)


def test_restarts_keep_the_best_of_all_that_was_asked() -> None:
    """The same of `pgd_restarts`, against a plain network."""
    net = Linear(torch.randn(3, 4, 4), 0.0)
    x, y = GREY[:1], ZEROS[:1]
    budget = Budget(EPS, 4 / 255, 3, 3)
    watched, answers = BestIterate(net, x, y), list[float]()
    best = pgd_restarts(lambda z: (answers.append(float(margin(net(quantise(z)), y))), net(z))[1], x, y, budget)
    assert float(margin(net(best), y)) == pytest.approx(max(answers)) and float(watched.margin) < max(answers)


@pytest.mark.parametrize("member", STATIC)
def test_the_worst_case_reaches_the_optimum_of_a_linear_network(member: Member) -> None:
    """x + eps * sign(w), cut off at black and white: no image of the ball is misclassified, and it is the nearest."""
    weight = 0.1 * torch.randn(3, 4, 4)
    x = quantise(torch.rand(3, 3, 4, 4))
    y = ZEROS
    found = worst_case(Linear(weight, -4.0), x, y, Budget(EPS, steps=8, restarts=1), [member])
    torch.testing.assert_close(found.nearest, (x + EPS * weight.sign()).clamp(0, 1), rtol=0, atol=1e-6)
    assert torch.equal(found.x_adv, x) and found.by.tolist() == [MISSED] * 3 and bool((found.margin < 0).all())
    just = Linear(weight, -float(((x[0] + EPS * weight.sign()).clamp(0, 1) - 0.5).mul(weight).sum()) + 1e-4)
    assert worst_case(just, x[:1], y[:1], Budget(EPS, steps=8), [member]).by.tolist() == [0]


def test_a_forced_branch_finds_what_a_dead_gradient_hides() -> None:
    """T1 and T2 stand still, forcing the natural branch breaks every image, and `by` says who did."""
    net = Switch().eval()
    x = GREY + 2 / 255
    blind = [m for m in DETECTING if m.copy in ("T1", "T2")]
    budget = Budget(EPS, steps=20, restarts=1)
    assert worst_case(net, x, ZEROS, budget, blind).by.tolist() == [MISSED] * 3
    found = worst_case(net, x, ZEROS, budget)
    assert {DETECTING[i].copy for i in found.by.tolist()} == {"nat"}
    assert bool(lost(net, found.x_adv, ZEROS).all())


@pytest.mark.slow
def test_the_worst_case_leaves_no_more_than_any_attack() -> None:
    """Than each of its members alone, and than each of the paper's attacks at T1 and T2, rounded, on each image."""
    net, x, y = small()
    eps = 1 / 255
    found = worst_case(net, x, y, Budget(eps, steps=8, restarts=2))
    broken = lost(net, found.x_adv, y)
    assert torch.equal(broken, found.margin > 0)
    for member in DETECTING:
        alone = worst_case(net, x, y, Budget(eps, steps=8, restarts=1), [member])
        assert int(broken.sum()) >= int((alone.margin > 0).sum())
    left = []
    for name in ("fgsm", "pgd_sat", "pgd_trades", "cw_inf", "adaptive", "pgd_restarts"):
        for copy in ("T1", "T2"):
            x_adv = ATTACKS[name][0](attackers_copy(net, copy), x, y, Budget(eps, eps / 4, 8, 2))
            also = lost(net, quantise(x_adv), y)
            left.append(int((~also).sum()))
            assert not bool((also & ~broken).any()), (name, copy)
    assert min(left) > 0, "an attack that breaks everything compares nothing"


def test_what_is_found_is_8_bit_and_in_the_ball() -> None:
    """Also for a radius that is no whole number of levels; x and the network's gradients are left alone."""
    net, x, y = small()
    x, y, before = x[:8], y[:8], x[:8].clone()
    found = worst_case(net, x, y, Budget(2.7 / 255, steps=3))
    for z in (found.x_adv, found.nearest):
        assert torch.equal(z, quantise(z)) and not z.requires_grad
        assert float((z - x).abs().max()) <= 2 / 255 + 1e-6 and 0 <= float(z.min()) <= float(z.max()) <= 1
    assert torch.equal(x, before) and all(p.grad is None for p in net.parameters())
    assert torch.equal(found.x_adv[found.by < 0], x[found.by < 0])


def test_an_image_is_left_alone_from_its_first_success_on() -> None:
    """One that is misclassified as it is was not attacked; work stops where nothing resists."""
    sizes: list[int] = []

    class Counted(Lure):
        def detect(self, x: Tensor) -> object:  # type: ignore[override]
            sizes.append(len(x))
            return super().detect(x)

    y = torch.tensor([1, 0, 0])  # grey is class 0
    found = worst_case(Counted().eval(), GREY, y, Budget(EPS, steps=50, restarts=2))
    assert found.by.tolist()[0] == WRONG_AS_IT_IS and torch.equal(found.x_adv[0], GREY[0])
    assert bool((found.margin > 0).all()) and sizes[0] == 3 and max(sizes[1:]) <= 2 and len(sizes) < 60
    counts = broken_first_by(found.by, DETECTING)
    assert sum(counts.values()) == 3 and counts["no attack needed"] == 1 and counts["none"] == 0


def test_gradients_in_bfloat16_are_judged_in_float32() -> None:
    """The margins are those of the deployed network, whatever the gradient was computed in."""
    net, x, y = small()
    found = worst_case(net, x[:8], y[:8], Budget(1 / 255, steps=4, restarts=1), members_of(net, quick=True), bf16=True)
    torch.testing.assert_close(found.margin, margin(net(found.nearest), y[:8]), rtol=1e-4, atol=1e-4)


def test_a_static_network_has_no_detector_to_ignore() -> None:
    """Its members are the two losses of the whole network."""
    assert (
        members_of(Linear(torch.randn(3, 4, 4), 0.0)) == members_of(Linear(torch.randn(3, 4, 4), 0.0), True) == STATIC
    )
    assert {m.copy for m in members_of(Lure())} == {"T1", "T2", "nat", "adv", "half"}


@pytest.mark.parametrize(("mode", "copies"), [("robust", {"T1", "T2"}), ("auto", {"T1", "T2", "nat", "adv", "half"})])
def test_only_branches_that_can_answer_are_attacked(mode: str, copies: set[str]) -> None:
    """Where one branch answers whatever the detector says, the other has nothing to force."""
    assert {m.copy for m in members_of(InMode(Lure(), mode))} == copies


def test_a_bounded_mixture_is_attacked_through_both_branches_at_once() -> None:
    """ "sure" gives the natural branch all that it can have, "both" adds what the branches say, and omega keeps its
    gradient in either: the members that break most of such a network."""
    net, x, _ = small()
    bounded = shallow(net)
    bounded.config = dataclasses.replace(net.config, mixing="bounded", mixing_limit=0.4, mixing_temperature=2.0)
    signals = net.detect(x)
    adv, nat = net.classify(x, signals, "adv"), net.classify(x, signals, "nat")
    most = 0.6 * (2 * adv).softmax(1) + 0.4 * nat.softmax(1)
    torch.testing.assert_close(attackers_copy(bounded, "sure")(x).exp(), most)
    torch.testing.assert_close(attackers_copy(bounded, "both")(x), adv.log_softmax(1) + nat.log_softmax(1))
    for level in ("sure", "both"):
        followed, cut = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
        attackers_copy(bounded, level)(followed)[:, 0].sum().backward()
        blind = attackers_copy(bounded, level)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AWNet, "detect", lambda self, z: signals.detach())
            blind(cut)[:, 0].sum().backward()
        assert not torch.allclose(followed.grad, cut.grad), "omega has no gradient"
    assert {"both", "sure"} <= {m.copy for m in members_of(bounded)} and members_of(bounded, quick=True)[
        0
    ].copy == "both"
    assert not {"both", "sure"} & {m.copy for m in members_of(net)}, "Eq. 16 is judged as it was"


def test_apgd_looks_back_where_its_paper_does() -> None:
    """Croce and Hein, sec. 3: 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of 100 iterations."""
    assert checkpoints(100) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert checkpoints(1) == {} and checkpoints(2) == {1: 1}


@pytest.mark.slow
def test_autoattack_is_judged_at_8_bits() -> None:
    """A network that is misclassified between grey levels only: no file can hold that, so nothing is lost.

    In float the same attack finds it on every image (the rounding is taken away to show it).
    """

    class Between(Network):
        kind = "between"

        def forward(self, z: Tensor) -> Tensor:
            levels = (z * 255).flatten(1)
            off = (levels - levels.round()).abs().amax(1)  # 0 on every 8-bit image
            score = 5 * off - 0.3
            return torch.stack([-score, score, score - 9, score - 9], dim=1)

    y = ZEROS
    x_adv = autoattack(Between(), GREY, y, Budget(2 / 255, steps=5))
    assert torch.equal(x_adv, quantise(GREY))
    net, x, y = small()
    found = autoattack(net, x[:3], y[:3], Budget(1 / 255, steps=3))
    assert torch.equal(found, quantise(found)) and float((found - x[:3]).abs().max()) <= 1 / 255 + 1e-6
    assert bool(lost(net, found, y[:3]).any())


def test_a_ball_without_another_8_bit_image_is_refused() -> None:
    """Under one grey level: a robustness of 100 % would be none."""
    net, x, y = small()
    for attack in (worst_case, autoattack, pgd_restarts):
        with pytest.raises(ValueError, match="1/255"):
            attack(net, x[:2], y[:2], Budget(0.9 / 255))
    assert whole_levels(8 / 255) == EPS and whole_levels(2.7 / 255) == 2 / 255
