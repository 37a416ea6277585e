"""What an image's pixels tell: each statistic on pictures whose value is known, and the reason outside the ranges."""

from __future__ import annotations

import numpy as np
import pytest

from domain.statistics import REASONS, STATISTICS, measure, outside


def noise(seed: int = 0, low: int = 0, high: int = 256) -> np.ndarray:
    """An image of independent uniform values, uint8 [3,32,32]."""
    return np.random.default_rng(seed).integers(low, high, (3, 32, 32), np.uint8)


def test_a_flat_image_is_one_colour_without_detail():
    """Every statistic is defined where nothing varies."""
    assert measure(np.full((3, 32, 32), 9, np.uint8)) == {
        "colours": 1 / 1024,
        "gaps": 0,
        "ties": 1,
        "fine_detail": 0,
        "grey_detail": 1,
    }


def test_colours_are_counted_as_triples():
    """The same values in another order are other colours."""
    image = np.zeros((3, 8, 8), np.uint8)
    image[0, 0, 0], image[1, 0, 1], image[2, 0, 2] = 200, 200, 200
    assert measure(image)["colours"] == 4 / 64


def test_a_stretched_contrast_leaves_gaps():
    """Levels that no value has between levels that are used; an even spread has none."""
    image = noise(low=60, high=160)
    stretched = np.round((image - 110.0) * 1.5 + 110).astype(np.uint8)
    assert measure(image)["gaps"] < 0.01
    assert measure(stretched)["gaps"] > 0.3


def test_fine_detail_is_the_diagonal_band():
    """A checkerboard of +-10 has a diagonal detail of 20 everywhere, stripes have none."""
    board = np.indices((32, 32)).sum(0) % 2 * 20 + 100
    stripes = np.indices((32, 32))[0] % 2 * 20 + 100
    assert measure(np.stack([board] * 3).astype(np.uint8))["fine_detail"] == 20
    assert measure(np.stack([stripes] * 3).astype(np.uint8))["fine_detail"] == 0


def test_grey_detail_is_what_the_channels_share():
    """All of it where the channels are equal, about 1 / sqrt(3) where they are independent."""
    image = noise()
    assert measure(np.stack([image[0]] * 3))["grey_detail"] == pytest.approx(1)
    assert measure(image)["grey_detail"] == pytest.approx(3**-0.5, abs=0.05)


def test_ties_are_equal_neighbours():
    """Columns of one value each agree downwards and never sideways."""
    image = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8), (3, 32, 32))
    assert measure(image)["ties"] == 0.5


def test_every_statistic_has_a_reason_and_no_other():
    """The table is the vocabulary of ranges and of answers."""
    assert set(measure(noise())) == set(STATISTICS) == set(REASONS)


def test_both_ends_of_a_range_belong_to_it():
    """Inside at the ends; outside, the first statistic out of range gives the reason, in the ranges' order."""
    statistics = {"colours": 0.5, "ties": 0.2}
    assert outside(statistics, {"colours": (0.5, 0.5), "ties": (0.2, 1)}) is None
    assert outside(statistics, {"colours": (0.6, 1), "ties": (0.3, 1)}) == "few colours"
    assert outside(statistics, {"ties": (0, 0.1), "colours": (0.6, 1)}) == "neighbouring pixels agree too often"
    assert outside(statistics, {}) is None


def test_a_range_of_something_that_was_not_measured_is_an_error():
    """A contract of a later version is not read as "inside"."""
    with pytest.raises(KeyError):
        outside(measure(noise()), {"entropy": (0, 1)})
