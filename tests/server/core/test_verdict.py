"""Where the line between clean and adversarial is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from server.core.domains import Threshold, Thresholds
from server.core.verdict import judge, ranked, shown, significant

AT = Thresholds(Threshold(0.41, 0.05), Threshold(0.77, 0.01))


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (0.0, "clean"),
        (0.41, "clean"),
        (0.4100001, "suspicious"),
        (0.77, "suspicious"),
        (0.7700001, "adversarial"),
        (1.0, "adversarial"),
    ],
)
def test_a_score_must_be_over_a_threshold_to_be_flagged(score: float, verdict: str) -> None:
    """At the threshold itself is not over it: the false-positive rate was counted that way."""
    assert judge(score, AT) == verdict


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_score_never_reads_as_clean(score: float) -> None:
    """NaN is not over any threshold; it is a fault all the same."""
    with pytest.raises(ValueError, match="finite"):
        judge(score, AT)


def test_no_score_is_shown_on_the_other_side_of_a_threshold() -> None:
    """Six digits, but all of them where six would contradict the verdict."""
    rng = np.random.default_rng(0)
    near = [float(np.float32(t + d)) for t in (0.41, 0.77) for d in rng.normal(0, 1e-6, 200)]
    for score in [*near, 0.4100000001, 0.7699999999, 0.77]:
        assert judge(shown(score, AT), AT) == judge(score, AT)
    assert shown(0.123456789, AT) == 0.123457


def test_probabilities_add_up_and_survive_large_logits() -> None:
    """The largest is subtracted first."""
    assert ranked(np.array([1000.0, 1000.0, -1000.0], np.float32), 3) == [(0, 0.5), (1, 0.5), (2, 0.0)]
    classes, shares = zip(*ranked(np.array([0.0, 1.0, 2.0], np.float32), 3), strict=True)
    assert classes == (2, 1, 0) and sum(shares) == pytest.approx(1)
    np.testing.assert_allclose(shares, np.exp([2, 1, 0]) / np.exp([0, 1, 2]).sum())


def test_probabilities_are_made_of_differences_in_float32() -> None:
    """To the last digit as NumPy takes them, so that an answer is the same whatever makes it."""
    logits = np.random.default_rng(0).normal(0, 5, (50, 10)).astype(np.float32)
    for row in logits:
        likely = [math.exp(difference) for difference in (row - row.max()).tolist()]
        assert dict(ranked(row, 10)) == {k: value / sum(likely) for k, value in enumerate(likely)}


def test_the_most_probable_classes_come_first() -> None:
    """Ties go to the lower class number, so that an answer repeats."""
    row = np.array([0.1, 0.3, 0.2, 0.3, 0.1], np.float32)
    assert [k for k, _ in ranked(row, 3)] == [1, 3, 2]
    assert [k for k, _ in ranked(row, 5)] == [1, 3, 2, 0, 4]


def test_six_significant_digits() -> None:
    """Small values keep their digits too."""
    assert significant(1.23456789e-9) == 1.23457e-9
    assert significant(123456789.0) == 123457000.0
