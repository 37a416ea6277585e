"""Intervals against published values."""

from __future__ import annotations

import pytest

from domain.shares import enough_for, least_for, wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (5, 100, 0.0215, 0.1118)],
)
def test_wilsons_interval_is_the_published_one(hits: int, n: int, low: float, high: float) -> None:
    """Of 0 of 10, the upper end is z^2 / (n + z^2)."""
    assert wilson(hits, n) == pytest.approx([hits / n, low, high], abs=5e-5)


@pytest.mark.parametrize("hits", [0, 1, 999, 1000])
def test_an_interval_stays_within_0_and_1_and_holds_its_share(hits: int) -> None:
    share, low, high = wilson(hits, 1000)
    assert 0 <= low <= share <= high <= 1


def test_a_share_of_no_images_is_none() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        wilson(0, 0)


@pytest.mark.parametrize(("rate", "least", "enough"), [(0.01, 99, 765), (0.05, 19, 150), (0.5, 1, 12)])
def test_how_many_images_a_rate_needs(rate: float, least: int, enough: int) -> None:
    """To be met at all, and to be known within a factor of two: with one image fewer it is not."""
    assert least_for(rate) == least and enough_for(rate) == enough
    for n, holds in ((enough, True), (enough - 1, False)):
        _, low, high = wilson(rate * n, n)
        assert (low >= rate / 2 and high <= 2 * rate) == holds
