"""Domains, score maps and the figures beside them: hand-worked cases, and a whole calibration of a tiny network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from domain.corruptions import CORRUPTIONS
from domain.ranges import LOW_ENDS, REACH, pool_ranges, pristine_ranges
from domain.shares import wilson
from domain.statistics import STATISTICS, outside
from export.graph import contract
from training.data.images import Split
from training.evaluation import calibration
from training.evaluation.calibration import (
    TRAINING_KINDS,
    Sample,
    assigned,
    attacked,
    calibrate_domains,
    inside,
    pool_of,
    rates_of,
    statistics_of,
)
from training.evaluation.pictures import changed
from training.evaluation.probability import brier, expected_calibration_error, fit_score_map
from training.networks import checkpoint
from training.networks.checkpoint import Domain


def random_images(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)


def a_domain(name: str, low: float, high: float, thresholds: tuple[float, float] = (0.5, 0.9)) -> Domain:
    """Images whose share of colours lies in [low, high]."""
    limits = dict(zip((0.05, 0.01), thresholds, strict=True))
    return Domain(name, name, [name], 1, {"colours": (low, high)}, limits, [0, 1], [1], [0, 1], [0.1, 0.9])


def of_colours(values: list[float]) -> np.ndarray:
    """Statistics of images with these shares of colours."""
    statistics = np.zeros((len(values), len(STATISTICS)))
    statistics[:, STATISTICS.index("colours")] = values
    return statistics


def test_brier_counts_both_sides_alike() -> None:
    """However many images a side has: a benign 0.2 and attacked 0.6 and 1.0 give half of 0.04 and of 0.08."""
    benign, hostile = [np.array([0.2] * 7)], [np.array([0.6]), np.array([1.0] * 3)]
    assert brier(benign, hostile) == pytest.approx((0.04 + (0.16 + 0) / 2) / 2)
    assert brier([np.array([0.5])], [np.array([0.5])]) == 0.25


def test_ece_is_the_gap_in_each_bin() -> None:
    """All said 0.5 and half are attacked: none; all said 0.9: 0.4. Opposite gaps of two bins do not cancel."""
    even = [np.full(4, 0.5)]
    assert expected_calibration_error(even, even) == pytest.approx(0)
    bold = [np.full(4, 0.9)]
    assert expected_calibration_error(bold, bold) == pytest.approx(0.4)
    assert expected_calibration_error([np.array([0.0])], [np.array([1.0])]) == pytest.approx(0)
    assert expected_calibration_error([np.array([1.0])], [np.array([0.0])]) == pytest.approx(1)


def test_a_score_map_says_how_often_a_score_means_an_attack() -> None:
    """Scores that are attacks with a chance equal to their square: the map finds the square, and rises."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40_000, generator=generator)
    hostile = torch.rand(40_000, generator=generator) < scores.square()
    found = fit_score_map(scores[~hostile], [scores[hostile]])
    assert (found.scores[0], found.scores[-1]) == (0.0, 1.0)
    assert np.all(np.diff(found.scores) > 0) and np.all(np.diff(found.probabilities) >= 0)
    at = torch.tensor([0.3, 0.5, 0.7, 0.9])
    odds = at.double().square() / (1 - at.double().square()) * float((~hostile).sum() / hostile.sum())  # at prior 0.5
    np.testing.assert_allclose(found(at), (odds / (1 + odds)).numpy(), atol=0.05)


def test_a_score_map_weighs_both_halves_and_each_attack_alike() -> None:
    """Ten times as many benign images, or one attack with more images than another, change nothing but the least
    probability that the sample allows."""
    benign, first, second = torch.linspace(0, 0.6, 50), torch.linspace(0.4, 1, 40), torch.linspace(0.2, 0.8, 20)
    one = fit_score_map(benign, [first, second])
    ten = fit_score_map(benign.repeat(10), [first.repeat(3), second])
    at = torch.linspace(0.3, 0.55, 20)
    np.testing.assert_allclose(one(at), ten(at), atol=0.03)


def test_no_score_is_ever_certain() -> None:
    """Separated scores give the least and the largest probability that so few images allow, not 0 and 1."""
    found = fit_score_map(torch.linspace(0, 0.1, 8), [torch.linspace(0.9, 1, 8)])
    assert found(torch.tensor([0.05, 0.95])) == pytest.approx([0.1, 0.9])


def test_pristine_ranges_are_open_where_an_attack_cannot_take_away() -> None:
    """Only colours and peaks have a lower end; attacks widen the other end, and open ends reach all values."""
    pristine = np.random.default_rng(0).uniform(0.4, 0.6, (1000, len(STATISTICS)))
    ball = np.full((10, len(STATISTICS)), 0.7)
    ranges = pristine_ranges(pristine, [ball])
    assert set(ranges) == set(STATISTICS)
    for name, (low, high) in ranges.items():
        assert (high == REACH[name]) if name in LOW_ENDS else (low == 0 and high == pytest.approx(0.7))
        assert name not in LOW_ENDS or low == pytest.approx(0.4, abs=0.002)
    both = pool_ranges(pristine, [ball])
    assert all(low == pytest.approx(0.4, abs=0.002) and high == pytest.approx(0.7) for low, high in both.values())


def test_no_statistic_leaves_its_reach() -> None:
    """Also of the wildest images."""
    board = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    wild = np.stack([np.stack([board, 255 - board, board]), np.stack([board, board * 0, board * 0])])
    rows = statistics_of(torch.from_numpy(np.concatenate([wild, random_images(4).numpy()])))
    assert (rows <= np.array([REACH[name] for name in STATISTICS])).all()


def test_an_image_belongs_to_the_first_domain_that_holds_it() -> None:
    """Both ends included; -1 where none does. It is what `outside` says of one image."""
    domains = [a_domain("narrow", 0.5, 0.75), a_domain("wide", 0.25, 1.0)]
    values = [0.1, 0.25, 0.5, 0.75, 0.9]
    assert assigned(of_colours(values), domains).tolist() == [-1, 1, 0, 0, 1]
    for value, held in zip(values, inside(of_colours(values), domains[0].ranges), strict=True):
        assert (outside({"colours": value}, domains[0].ranges) is None) == held


def test_rates_name_the_worst_kind_that_a_domain_holds() -> None:
    """A kind elsewhere, however flagged, is another domain's; so is one with too few images here."""
    domains = [a_domain("narrow", 0.5, 1.0), a_domain("wide", 0.0, 1.0, (0.95, 0.99))]
    flagged, half, quiet = torch.ones(4), torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.zeros(4)
    kinds = {
        ("blur", 1): Sample(quiet, of_colours([0.6] * 4)),
        ("noise", 2): Sample(half, of_colours([0.6] * 4)),
        ("palette", 3): Sample(flagged, of_colours([0.1] * 4)),
        ("rare", 4): Sample(flagged, of_colours([0.6, 0.1, 0.1, 0.1])),
    }
    pristine = Sample(torch.tensor([0.1, 0.6, 0.92, 0.96]), of_colours([0.9] * 4))
    narrow = rates_of(0, domains, pristine, kinds, {"8": torch.tensor([0.2, 0.97])}, least=2)
    assert narrow["fpr_worst"]["kind"] == "noise" and narrow["fpr_worst"]["strength"] == 2
    assert narrow["fpr_worst"]["suspicious"] == wilson(2, 4)
    assert narrow["fpr_pristine"] == {"suspicious": wilson(3, 4), "adversarial": wilson(2, 4)}
    assert narrow["tpr_t0"] == {"8": {"suspicious": wilson(1, 2), "adversarial": wilson(1, 2)}}
    wide = rates_of(1, domains, pristine, kinds, {}, least=2)
    assert wide["fpr_worst"]["kind"] == "palette" and "tpr_t0" not in wide


def test_the_pool_has_as_many_images_of_each_kind() -> None:
    """Five strengths in equal parts, other images from kind to kind; with few images each kind has them all."""
    pool = pool_of(random_images(40), TRAINING_KINDS, per_kind=10)
    assert {kind for kind, _ in pool} == {n for n, k in CORRUPTIONS.items() if k.group == "training"}
    assert [len(images) for images in pool.values()] == [2] * 80
    again = pool_of(random_images(40), TRAINING_KINDS, per_kind=10)
    assert all(torch.equal(images, again[key]) for key, images in pool.items())
    few = pool_of(random_images(3), TRAINING_KINDS, per_kind=10)
    assert sum(len(images) for images in few.values()) == 3 * 16


def test_attacked_images_lie_in_the_ball_and_leave_the_generator_alone(tiny_checkpoint: Path) -> None:
    """8 bits, at most eps levels away, the same every time."""
    net = checkpoint.load(tiny_checkpoint).awnet
    split = Split(random_images(6), torch.arange(6))
    before = torch.get_rng_state()
    found = attacked(net, split, eps=4, steps=2, size=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.dtype == torch.uint8
    difference = (found.int() - split.images.int()).abs()
    assert 0 < int(difference.max()) <= 4
    assert torch.equal(attacked(net, split, eps=4, steps=2, size=4), found)


@pytest.mark.slow
def test_a_calibration_has_both_domains_and_can_be_served(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Thresholds flag at most their share of the images that they are of; what is written is read back, and exported;
    the network's mode and the global random numbers are as before."""
    loaded = checkpoint.load(tiny_checkpoint)
    net = loaded.awnet.train()
    before = torch.get_rng_state()
    split = Split(random_images(60), torch.arange(60) % 10)
    found = calibrate_domains(net, split, per_kind=10)
    assert net.training and torch.equal(torch.get_rng_state(), before)
    pristine, pool = found.domains
    assert (pristine.name, pool.name) == ("pristine", "pool")
    assert pristine.kinds == ["pristine"] and pool.kinds == ["pristine", *TRAINING_KINDS]
    assert pool.images == 17 * 10 and 50 < pristine.images <= 60
    net.eval()
    own = Sample.of(net, split.images)
    held = own[inside(own.statistics, pristine.ranges)].scores
    assert len(held) == pristine.images
    assert float((held > pristine.thresholds[0.05]).double().mean()) <= 0.05
    assert inside(own.statistics, pool.ranges).mean() > 0.9
    document = checkpoint.read(tiny_checkpoint)
    checkpoint.save(tmp_path / "c.pt", {**document, "calibration": asdict(found)})
    back = checkpoint.load(tmp_path / "c.pt")
    assert back.calibration is not None and back.calibration.domains == found.domains
    contract.check(back)


@pytest.mark.slow
def test_stretched_images_have_thresholds_of_their_own(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where enough of the pool lack grey levels and nothing else: what contrast, light and gamma leave."""
    monkeypatch.setattr(calibration, "LEAST_IMAGES", 20)
    net = checkpoint.load(tiny_checkpoint).awnet
    slopes = torch.linspace(-60, 60, 32) * torch.rand(100, 3, 1, 1)  # gradients with a little noise, no level missing
    split = Split((125 + slopes + 4 * torch.randn(100, 3, 32, 32)).to(torch.uint8), torch.arange(100) % 10)
    found = calibrate_domains(net, split, per_kind=50)
    assert [domain.name for domain in found.domains] == ["pristine", "stretched", "pool"]
    pristine, stretched, _ = found.domains
    opened = {"gaps", "jumps", "colours"}
    assert all(stretched.ranges[name] == ends for name, ends in pristine.ranges.items() if name not in opened)
    assert stretched.ranges["gaps"][1] > 2 * pristine.ranges["gaps"][1] and stretched.ranges["jumps"][1] == 2.5
    brighter = statistics_of(changed(split.images, "brightness", 3))
    assert (assigned(brighter, found.domains) == 1).mean() > 0.5 > (assigned(brighter, found.domains) == 0).mean()
