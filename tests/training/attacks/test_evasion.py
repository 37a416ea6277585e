"""T3 against toy detectors whose holes are known, because they were built in."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from training.attacks.ascent import Budget, ascend, cross_entropy, quantise
from training.attacks.evasion import EVASIONS, Evasion, evade, evasions_of
from training.attacks.two_gradients import TwoGradients
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.network import InMode

THRESHOLD = 0.5
BUDGET = Budget(steps=60)


class ToySignals(NamedTuple):
    type_logits: Tensor

    @property
    def p_type(self) -> Tensor:
        return self.type_logits.softmax(1)

    def detach(self) -> ToySignals:
        return ToySignals(self.type_logits.detach())


def channel(z: Tensor, c: int) -> Tensor:
    """How far a channel's mean lies over mid grey, in grey levels."""
    return (z[:, c].mean((1, 2)) - 128 / 255) * 255


class Toy:
    """Classifies by channel 0 plus twice channel 1 (class 1 from 7 grey levels up); its detector watches channel 0.

    It flags a channel 0 more than 3 levels up, so certainly (`sharpness` logits a level) that its softmax is
    saturated. The hole: channel 1 alone reaches the wrong class, and nobody looks at it.
    """

    def __init__(self, hole: bool = True, sharpness: float = 200.0) -> None:
        self.hole, self.sharpness = hole, sharpness

    def detect(self, x: Tensor) -> ToySignals:
        watched = channel(x, 0) if self.hole else channel(x, 0) + 2 * channel(x, 1)
        over = self.sharpness * (watched - 3)
        return ToySignals(torch.stack([over, -over], dim=1))

    def classify(self, x: Tensor, signals: ToySignals, branch: str | None = None) -> Tensor:
        score = (channel(x, 0) + 2 * channel(x, 1) - 7) / 4
        return torch.stack([-score, score], dim=1)


class Gated:
    """Two branches: the natural one is fooled by channel 0, the adversarial one never; a hard switch between them.

    The detector watches channel 0 less channel 2. Where it fires, the deployed network's class has no gradient
    at all, so an attack that differentiates the deployed network stands still: its hole opens only to one
    that forces the natural branch.
    """

    def detect(self, x: Tensor) -> ToySignals:
        over = 200 * (channel(x, 0) - channel(x, 2) - 3)
        return ToySignals(torch.stack([over, -over], dim=1))

    def classify(self, x: Tensor, signals: ToySignals, branch: str | None = None) -> Tensor:
        score = channel(x, 0) - 6
        natural = torch.stack([-score, score], dim=1)
        safe = torch.tensor([[1.0, -1.0]]).expand_as(natural)
        if branch is not None:
            return natural if branch == "nat" else safe
        return torch.where(signals.p_type[:, :1] > 0.5, safe, natural)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.full((5, 3, 4, 4), 128 / 255), torch.zeros(5, dtype=torch.long)


@pytest.mark.parametrize("name", sorted(EVASIONS))
def test_every_evasion_finds_the_hole_that_plain_pgd_misses(name: str, batch: tuple[Tensor, Tensor]) -> None:
    """Plain PGD fools the class and is flagged on every image; every evasion gets through on every image."""
    x, y = batch
    toy = Toy()
    plain = quantise(ascend(lambda z: cross_entropy(toy.classify(z, toy.detect(z)), y), x, x, BUDGET))
    assert bool((toy.classify(plain, toy.detect(plain)).argmax(1) != y).all())
    assert bool((toy.detect(plain).p_type[:, 0] > THRESHOLD).all())
    found = evade(toy, x, y, BUDGET, EVASIONS[name], THRESHOLD)
    assert bool(found.success(THRESHOLD).all())


@pytest.mark.parametrize("name", sorted(EVASIONS))
def test_what_is_found_is_an_8_bit_image_that_the_deployed_network_confirms(
    name: str, batch: tuple[Tensor, Tensor]
) -> None:
    """Whole grey levels inside the ball, wrong class and that very score when asked again."""
    x, y = batch
    toy = Toy()
    found = evade(toy, x, y, BUDGET, EVASIONS[name], THRESHOLD)
    levels = found.x_adv * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert float((found.x_adv - x).abs().max()) <= 8 / 255 + 1e-6
    assert bool((toy.classify(found.x_adv, toy.detect(found.x_adv)).argmax(1) != y).all())
    torch.testing.assert_close(toy.detect(found.x_adv).p_type[:, 0], found.score)


@pytest.mark.parametrize("name", sorted(EVASIONS))
def test_a_detector_without_a_hole_is_not_evaded(name: str, batch: tuple[Tensor, Tensor]) -> None:
    """Where the detector watches all that the class depends on, misclassified images exist and none is unflagged."""
    x, y = batch
    found = evade(Toy(hole=False), x, y, BUDGET, EVASIONS[name], THRESHOLD, restarts=2)
    assert not bool(found.success(THRESHOLD).any())


def test_forcing_the_natural_branch_finds_what_a_dead_gradient_hides(batch: tuple[Tensor, Tensor]) -> None:
    """The reason for the forced branches: the deployed network's gradient vanishes, the hole is there all the same."""
    x, y = batch
    plain = Evasion()
    assert not bool(evade(Gated(), x, y, BUDGET, plain, THRESHOLD).success(THRESHOLD).any())
    forced = evade(Gated(), x, y, BUDGET, EVASIONS["selective_nat"], THRESHOLD)
    assert bool(forced.success(THRESHOLD).all())


def test_a_growing_ball_finds_what_hides_close_to_the_image(batch: tuple[Tensor, Tensor]) -> None:
    """A detector that is certain of all but small changes: at its whole radius the attack is flagged all along."""

    class Close(Toy):
        def detect(self, x: Tensor) -> ToySignals:  # flat beyond three levels: no way back
            over = torch.where(channel(x, 1) > 3, 200.0, channel(x, 1) - 3)
            return ToySignals(torch.stack([over, -over], dim=1))

        def classify(self, x: Tensor, signals: ToySignals, branch: str | None = None) -> Tensor:
            score = channel(x, 1) - 2.5
            return torch.stack([-score, score], dim=1)

    x, y = batch
    coarse = Budget(step=4 / 255, steps=60)
    assert not bool(evade(Close(), x, y, coarse, EVASIONS["selective"], THRESHOLD).success(THRESHOLD).any())
    assert bool(evade(Close(), x, y, coarse, EVASIONS["growing"], THRESHOLD).success(THRESHOLD).all())


def test_a_growing_ball_ends_at_the_budget() -> None:
    """Whole grey levels from 1 to 8, never less than before, all of it for the second half."""
    levels = [round(255 * EVASIONS["growing"].reach(i, BUDGET)[0]) for i in range(BUDGET.steps + 1)]
    assert levels[0] == 1 and levels == sorted(levels) and set(levels) == set(range(1, 9))
    assert set(levels[BUDGET.steps // 2 :]) == {8}


def test_the_best_iterate_is_kept_not_the_last(batch: tuple[Tensor, Tensor]) -> None:
    """Where nothing goes unflagged, the misclassified image with the lowest score met on the way is returned."""
    x, y = batch
    toy = Toy(hole=False, sharpness=0.01)
    met: list[Tensor] = []

    class Watched(Toy):
        def classify(self, z: Tensor, signals: ToySignals, branch: str | None = None) -> Tensor:
            logits = super().classify(z, signals, branch)
            wrong = logits.argmax(1) != y
            met.append(torch.where(wrong, signals.p_type[:, 0], torch.inf).detach())
            return logits

    found = evade(Watched(False, 0.01), x, y, Budget(steps=20), EVASIONS["lambda_0.1"], threshold=0.0)
    assert len(met) == 21 and not torch.equal(met[-1], torch.stack(met).amin(0))
    torch.testing.assert_close(found.score, torch.stack(met).amin(0))
    torch.testing.assert_close(toy.detect(found.x_adv).p_type[:, 0], found.score)


def test_an_image_that_is_wrong_and_unflagged_as_it_stands_counts(batch: tuple[Tensor, Tensor]) -> None:
    """A clean error needs no attack: it is an undetected one, with no change at all."""
    x, y = batch
    found = evade(Toy(), x, 1 - y, BUDGET, EVASIONS["selective"], THRESHOLD)
    assert bool(found.success(THRESHOLD).all())
    torch.testing.assert_close(found.x_adv, x)


def test_images_that_are_done_leave_the_batch(batch: tuple[Tensor, Tensor]) -> None:
    """Work stops where it succeeded: a mixed batch shrinks to the images that still resist."""
    x, _ = batch
    sizes: list[int] = []

    class Counted(Toy):
        def detect(self, z: Tensor) -> ToySignals:
            sizes.append(len(z))
            return super().detect(z)

    mixed = torch.tensor([1, 1, 1, 0, 0])  # three clean errors
    evade(Counted(hole=False), x, mixed, Budget(steps=5), EVASIONS["lambda_1"], THRESHOLD)
    assert sizes == [5, 2, 2, 2, 2, 2]


def test_a_score_of_exactly_the_threshold_is_not_flagged(batch: tuple[Tensor, Tensor]) -> None:
    """Only a score over the threshold is flagged, here as everywhere; the search stops there too."""
    x, y = batch
    seen: list[int] = []

    class Undecided(Toy):
        def detect(self, z: Tensor) -> ToySignals:
            seen.append(len(z))
            return super().detect(z)

    found = evade(Undecided(sharpness=0.0), x, 1 - y, BUDGET, EVASIONS["selective"], THRESHOLD)
    assert bool(found.success(0.5).all()) and not bool(found.success(0.49).any())
    assert seen == [5]


def test_the_search_ends_in_single_grey_levels(batch: tuple[Tensor, Tensor]) -> None:
    """Steps of two levels in the first half, of one in the second, always whole ones."""
    x, y = batch
    met: list[Tensor] = []

    class Watched(Toy):
        def detect(self, z: Tensor) -> ToySignals:
            met.append((z.detach() * 255).round())
            return super().detect(z)

    evade(Watched(hole=False), x, y, Budget(steps=10), EVASIONS["selective"], threshold=-1.0)
    moves = [float((b - a).abs().max()) for a, b in itertools.pairwise(met)]
    assert moves == [2.0] * 5 + [1.0] * 5


def test_no_evasion_forces_a_branch_that_cannot_answer() -> None:
    """Where the adversarial branch answers, the best of them takes its gradient; none is there twice."""
    net = AWNet(AWNetConfig(width=4)).eval()
    assert evasions_of(net) == EVASIONS == evasions_of(InMode(net, "auto"))
    robust = evasions_of(InMode(net, "robust"))
    assert {how.branch for how in robust.values()} == {None, "adv"}
    assert robust["two_gradients"] == TwoGradients() and "selective_adv" in robust
    assert robust.keys() == EVASIONS.keys() - {"selective_nat", "growing_nat"}


def test_restarts_only_add(batch: tuple[Tensor, Tensor]) -> None:
    """A second try cannot lose what the first one found."""
    x, y = batch
    one = evade(Toy(False, 0.01), x, y, Budget(steps=5), EVASIONS["lambda_1"], 0.0)
    two = evade(Toy(False, 0.01), x, y, Budget(steps=5), EVASIONS["lambda_1"], 0.0, restarts=3)
    assert bool((two.score <= one.score).all())


def test_a_ball_smaller_than_a_grey_level_is_refused(batch: tuple[Tensor, Tensor]) -> None:
    """There is no other 8-bit image in it; a rate of 0 would look like robustness."""
    with pytest.raises(ValueError, match="1/255"):
        evade(Toy(), *batch, Budget(eps=0.5 / 255), EVASIONS["selective"], THRESHOLD)


@pytest.mark.parametrize("name", sorted(EVASIONS))
def test_an_awnet_is_attacked_as_it_is_deployed(name: str) -> None:
    """The score and class reported for a real AW-Net are those of its plain evaluation."""
    net = AWNet(AWNetConfig(width=4)).eval().requires_grad_(False)
    x = quantise(torch.rand(3, 3, 32, 32))
    y = net(x).argmax(1)
    found = evade(net, x, y, Budget(steps=4), EVASIONS[name], threshold=0.0)
    hit = found.score.isfinite()
    signals = net.detect(found.x_adv)
    torch.testing.assert_close(signals.p_type[hit, 0], found.score[hit], rtol=1e-4, atol=1e-6)
    assert bool((net.classify(found.x_adv, signals).argmax(1) != y)[hit].all())
    assert torch.equal(found.x_adv[~hit], x[~hit])
