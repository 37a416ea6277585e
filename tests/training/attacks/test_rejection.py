"""Static networks that reject are attacked by the search of T3."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training.attacks.ascent import Budget, quantise
from training.attacks.rejection import Accepting, MaxSoftmax, SeparateDetector, doubt, mislead
from training.awnet import AWNet, AWNetConfig
from training.baselines import StaticConfig, build_static

GREY = 128 / 255


class ThreeClasses(nn.Module):
    """Logits of class k: `slope` times the mean of channel k over mid grey in grey levels, class 0 ahead by `lead`."""

    def __init__(self, slope: float = 0.5, lead: float = 3.0) -> None:
        super().__init__()
        self.slope, self.lead = slope, lead

    def forward(self, x: Tensor) -> Tensor:
        over = self.slope * (x.mean((2, 3)) - GREY) * 255
        return over + torch.tensor([self.lead, 0.0, 0.0])


def surest(radius: float, slope: float = 0.5, lead: float = 3.0) -> float:
    """The least score 1 - p of a wrong class in the ball: its channel all up, the two others all down."""
    logits = torch.tensor([lead - slope * radius, slope * radius, -slope * radius])
    return 1 - float(logits.softmax(0)[1])


@pytest.mark.parametrize("radius", [4, 8])
def test_a_confident_wrong_answer_is_found_exactly_where_one_exists(radius: int) -> None:
    """The surest wrong answer of a linear network is known; just above that score it is found, just below never."""
    target = MaxSoftmax(ThreeClasses())
    x, y = torch.full((3, 3, 4, 4), GREY), torch.zeros(3, dtype=torch.long)
    budget, least = Budget(eps=radius / 255, steps=40), surest(radius)
    assert bool(mislead(target, x, y, budget, least * 1.02).success(least * 1.02).all())
    assert not bool(mislead(target, x, y, budget, least * 0.98, restarts=2).success(least * 0.98).any())


def test_doubt_resolves_what_one_minus_p_rounds_away() -> None:
    """Log-odds of 1 - max p are right at both ends, where float32 probabilities are 0 or have no gradient."""
    logits = torch.tensor([[60.0, 0.0, 0.0], [1.0, 1.0, 1.0]], requires_grad=True)
    expected = torch.tensor([-60 + torch.tensor(2.0).log(), torch.tensor(2.0).log()])
    torch.testing.assert_close(doubt(logits), expected)
    (gradient,) = torch.autograd.grad(doubt(logits)[0], logits)
    assert gradient[0].tolist() == pytest.approx([-1, 0.5, 0.5])


def test_whoever_rejects_nothing_is_misled_wherever_it_is_misclassified() -> None:
    """The same search is a plain attack where every score is 0."""
    x, y = torch.full((3, 3, 4, 4), GREY), torch.zeros(3, dtype=torch.long)
    for eps, possible in ((2, False), (4, True)):  # class 1 overtakes by a level for each of two channels, 3 / 0.5
        found = mislead(Accepting(ThreeClasses()), x, y, Budget(eps=eps / 255, steps=20), 0.5)
        assert bool((found.success(0.5) == possible).all())


def test_what_one_strategy_got_through_is_left_alone_by_the_next() -> None:
    """Nothing is searched again, and nothing is lost."""
    sizes: list[int] = []

    class Counted(ThreeClasses):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    x, y = torch.full((4, 3, 4, 4), GREY), torch.tensor([0, 1, 0, 2])
    found = mislead(Accepting(Counted()), x, y, Budget(eps=1 / 255, steps=3), 0.5)
    assert found.success(0.5).tolist() == [False, True, False, True]
    assert sizes[0] == 4 and set(sizes[1:]) == {2}


def test_a_separate_detector_is_asked_alone() -> None:
    """Logits are those of the classifier, scores those of the detector, whoever asks, and both have a gradient."""
    net = build_static(StaticConfig("resnet18", width=4)).eval().requires_grad_(False)
    guard = AWNet(AWNetConfig(width=4)).eval().requires_grad_(False)
    target = SeparateDetector(net, guard)
    z = quantise(torch.rand(2, 3, 32, 32)).requires_grad_(True)
    seen, (logits, score) = target.see(z, "nat"), target.judge(z)
    torch.testing.assert_close(seen.logits, net(z))
    torch.testing.assert_close(seen.logits, logits)
    torch.testing.assert_close(seen.score, guard.detect(z).p_type[:, 0])
    torch.testing.assert_close(seen.score, score)
    for part in (seen.attacked[:, 0], seen.log_odds):
        (gradient,) = torch.autograd.grad(part.sum(), z, retain_graph=True)
        assert gradient.shape == z.shape
