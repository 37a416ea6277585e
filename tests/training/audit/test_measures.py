"""Curves and figures against cases worked by hand."""

from __future__ import annotations

import pytest
import torch

from training.audit import measures


def test_an_interval_is_wilsons() -> None:
    """Nothing of twenty and half of a hundred, as tables of the interval have them; never outside [0, 1]."""
    low, high = measures.interval(0.0, 20)
    assert low == 0.0 and high == pytest.approx(0.1611, abs=1e-4)
    assert measures.interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_risk_falls_where_the_score_knows_what_is_wrong() -> None:
    """Two wrong images with the highest scores: no risk at half coverage, their share at full coverage."""
    correct = torch.tensor([True, True, False, False])
    coverage, risk = measures.risk_coverage(correct, torch.tensor([0.1, 0.2, 0.8, 0.9]))
    assert coverage == [0.25, 0.5, 0.75, 1.0]
    assert risk == pytest.approx([0.0, 0.0, 1 / 3, 0.5], abs=1e-5)


def test_a_roc_curve_reads_as_rates_at_most_so_many_false_positives() -> None:
    """A perfect score flags all attacked images at no false positive; a useless one as many as natural ones."""
    zeros, ones = torch.zeros(50), torch.ones(50)
    fpr, tpr = measures.roc(zeros, ones)
    assert fpr[0] == 0 and tpr[0] == 1 and tpr[-1] == 1
    same = torch.linspace(0, 1, 200)
    fpr, tpr = measures.roc(same, same)
    assert all(abs(a - b) <= 0.011 for a, b in zip(fpr, tpr, strict=True))


def test_reliability_sets_what_was_said_beside_what_was_so() -> None:
    """Bins that hold nothing are left out; a probability of exactly 1 belongs to the last one."""
    said, was, images = measures.reliability(torch.tensor([0.1, 0.3, 1.0]), torch.tensor([False, True, True]), bins=2)
    assert said == pytest.approx([0.2, 1.0]) and was == [0.5, 1.0] and images == [2, 1]


def test_a_histogram_of_scores_resolves_both_ends() -> None:
    """0.0005 and 0.005 are bins apart; certain scores are in the outermost bins, none is lost."""
    counts = measures.histogram(torch.tensor([0.0, 0.0005, 0.005, 0.5, 1.0, 1.0]))
    assert sum(counts) == 6 and counts[0] == 1 and counts[-1] == 2
    assert measures.log_odds(0.5) == 0 and measures.log_odds(0.0) == pytest.approx(-measures.REACH)


def test_the_implied_accuracy_counts_what_is_right_accepted_and_never_evaded() -> None:
    """Four images: misclassified, flagged, evaded, and one that holds."""
    correct = torch.tensor([False, True, True, True])
    flagged = torch.tensor([False, True, False, False])
    evaded = torch.tensor([False, False, True, False])
    assert measures.implied_accuracy(correct, flagged, evaded) == 0.25
