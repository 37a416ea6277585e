"""Detection figures against numbers worked by hand, and thresholds that keep their promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.evaluation.detection import auroc, bootstrap, calibrate, flagged, histogram, threshold_at
from training.networks import checkpoint

CLEAN = torch.tensor([0.1, 0.2, 0.3, 0.4])
ADVERSARIAL = torch.tensor([0.35, 0.8])


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    """0.35 beats three of four clean scores and 0.8 all four: 7 of 8 pairs; a tie counts half."""
    assert auroc(CLEAN, ADVERSARIAL) == pytest.approx(7 / 8)
    assert auroc(CLEAN, torch.tensor([0.3])) == pytest.approx(2.5 / 4)
    assert auroc(CLEAN, CLEAN) == pytest.approx(0.5)
    assert auroc(ADVERSARIAL, CLEAN) == pytest.approx(1 / 8)


def test_auroc_sees_differences_that_only_float32_keeps() -> None:
    """Scores of a saturated head crowd near 0 and 1; ranking must not round them together."""
    top = torch.tensor([1.0 - 2**-24])  # the float32 below 1
    assert auroc(top, torch.tensor([1.0])) == 1.0
    assert auroc(torch.tensor([1e-30]), torch.tensor([2e-30])) == 1.0


def test_threshold_flags_the_allowed_share() -> None:
    """Of 100 distinct scores 0 ... 99, five may be flagged at 5 %: those over 94."""
    scores = torch.arange(100.0)[torch.randperm(100)]
    assert threshold_at(scores, 0.05) == 94
    assert flagged(scores, 94) == pytest.approx(0.05)
    assert threshold_at(scores, 0.0) == 99
    assert threshold_at(scores, 0.29) == 70  # 0.29 * 100 is a little under 29 in floating point


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("n", [1, 7, 99, 100, 5000])
def test_no_threshold_flags_more_than_it_promises(n: int, fpr: float) -> None:
    """With many ties, and however many images there are, the realised rate stays within; the next score breaks it."""
    scores = (torch.rand(n) * 50).round() / 50
    threshold = threshold_at(scores, fpr)
    assert flagged(scores, threshold) <= fpr
    below = scores[scores < threshold]
    if len(below):
        assert flagged(scores, float(below.max())) > fpr


def test_equal_scores_are_flagged_together_or_not_at_all() -> None:
    """Where every clean image has the same score, none is flagged at any rate under 1."""
    assert flagged(torch.full((50,), 0.3), threshold_at(torch.full((50,), 0.3), 0.05)) == 0


def test_a_threshold_survives_json_and_compares_alike_in_both_precisions() -> None:
    """It is an exact float32 value, so the server's comparison flags exactly the images that were counted here."""
    scores = torch.rand(1000)
    threshold = json.loads(json.dumps(threshold_at(scores, 0.05)))
    assert float(np.float32(threshold)) == threshold
    in32 = scores.numpy() > np.float32(threshold)
    in64 = scores.double().numpy() > threshold
    assert (in32 == in64).all() and in32.sum() == 50


def test_tpr_uses_the_threshold_of_the_clean_scores() -> None:
    """At 25 % one of four clean images may be flagged: the threshold is 0.3, which both adversarial ones exceed."""
    assert flagged(ADVERSARIAL, threshold_at(CLEAN, 0.25)) == 1.0
    assert flagged(ADVERSARIAL, threshold_at(CLEAN, 0.0)) == 0.5


@pytest.mark.parametrize("bad", [torch.tensor([]), torch.tensor([float("nan")]), torch.tensor([float("inf")])])
def test_scores_that_are_none_are_refused(bad: torch.Tensor) -> None:
    """Empty or not finite is a ValueError: a NaN would never be flagged and never be noticed."""
    with pytest.raises(ValueError, match="finite"):
        auroc(CLEAN, bad)
    with pytest.raises(ValueError, match="finite"):
        threshold_at(bad, 0.05)


def test_a_rate_outside_zero_and_one_is_refused() -> None:
    """A false-positive rate of 1 would need no threshold; 5 (per cent?) is a slip."""
    for fpr in (1.0, 5, -0.1):
        with pytest.raises(ValueError, match="false-positive rate"):
            threshold_at(CLEAN, fpr)


def test_bootstrap_brackets_a_mean_as_theory_has_it() -> None:
    """For the mean of 400 normal values the 95 % interval is about 4 standard errors wide, and repeatable."""
    sample = torch.randn(400)
    mean = lambda s: float(s.mean())  # noqa: E731 - a statistic, said in one line
    low, high = bootstrap(mean, sample, resamples=1000)
    assert low < float(sample.mean()) < high
    assert high - low == pytest.approx(2 * 1.96 * float(sample.std()) / 20, rel=0.15)
    assert bootstrap(mean, sample, resamples=50) == bootstrap(mean, sample, resamples=50)
    assert bootstrap(mean, torch.ones(9), resamples=20) == (1.0, 1.0)


def test_bootstrap_redraws_every_sample() -> None:
    """Of a two-sample statistic both sides vary: the interval covers the other's spread too."""
    low, high = bootstrap(auroc, CLEAN, ADVERSARIAL, resamples=200)
    assert low < 7 / 8 <= high <= 1


def test_histogram_counts_every_score_once() -> None:
    """Edges run from 0 to 1, a score of exactly 1 is in the last bin."""
    edges, counts = histogram(torch.tensor([0.0, 0.05, 0.15, 0.5, 1.0]), bins=10)
    assert (edges[0], edges[-1], len(edges)) == (0.0, 1.0, 11)
    assert counts == [2, 1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_calibration_describes_the_images_it_saw(tiny_checkpoint: Path) -> None:
    """Thresholds, histogram and omega statistics equal those of one direct pass, whatever the batches."""
    net = checkpoint.load(tiny_checkpoint).awnet
    images = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        signals = net.detect(images.float() / 255)
    scores, omega = signals.p_type[:, 0], torch.cat(signals.omega, dim=1)
    net.train()
    found = calibrate(net, images.split(16))
    assert net.training
    assert found.images == 60 and sum(found.histogram_counts) == 60
    for fpr, count in ((0.05, 3), (0.01, 0)):
        assert int((scores > found.thresholds[fpr]).sum()) in (count - 1, count)  # the pass in batches rounds otherwise
    torch.testing.assert_close(found.omega_mean, omega.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.omega_std, omega.std(0, correction=0), rtol=1e-3, atol=1e-5)
    assert found.omega_std.dtype == torch.float32 and not found.omega_std.is_inference()


def test_calibration_survives_its_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What `calibrate` returns can be packed, saved and loaded unchanged."""
    loaded = checkpoint.load(tiny_checkpoint)
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    found = calibrate(loaded.awnet, images.split(20))
    checkpoint.save(tmp_path / "c.pt", checkpoint.pack(loaded.network, labels=[], recipe={}, calibration=found))
    back = checkpoint.load(tmp_path / "c.pt").calibration
    assert back is not None and back.thresholds == found.thresholds
    assert torch.equal(back.omega_mean, found.omega_mean)


def test_calibration_takes_bytes_only(tiny_checkpoint: Path) -> None:
    """Float pixels could have been scaled any way; an empty set has no threshold."""
    net = checkpoint.load(tiny_checkpoint).awnet
    with pytest.raises(ValueError, match="uint8"):
        calibrate(net, [torch.rand(2, 3, 32, 32)])
    with pytest.raises(ValueError, match="no images"):
        calibrate(net, [])
