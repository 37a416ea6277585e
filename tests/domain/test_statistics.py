"""What an image's pixels tell: each statistic on pictures whose value is known, and the reason outside the ranges."""

from __future__ import annotations

import itertools
import typing
from pathlib import Path

import numpy as np
import pytest

from domain.statistics import REASONS, STATISTICS, measure, outside
from server.core.codecs.file import Unusual
from server.core.images import Altered

ROOT = Path(__file__).resolve().parents[2]


def noise(seed: int = 0, low: int = 0, high: int = 256) -> np.ndarray:
    """An image of independent uniform values, uint8 [3,32,32]."""
    return np.random.default_rng(seed).integers(low, high, (3, 32, 32), np.uint8)


def test_a_flat_image_is_one_colour_without_detail():
    """Every statistic is defined where nothing varies."""
    flat = measure(np.full((3, 32, 32), 9, np.uint8))
    assert flat == {**dict.fromkeys(STATISTICS, 0), "colours": 1 / 1024, "jumps": 4}


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


def test_few_levels_make_the_histogram_jump():
    """All values at every eighth level: each counts twice where it is and once on either side, the ends but once."""
    image = (noise() // 8 * 8).astype(np.uint8)
    assert measure(image)["jumps"] > 3.8
    assert measure(noise())["jumps"] < 1


def test_a_dot_is_a_peak_and_a_speck_by_its_height():
    """A grey dot stands out by its level and not by its colour, a red one by both."""
    grey = np.full((3, 12, 12), 100, np.uint8)
    grey[:, 5, 5] += 60
    red = np.full((3, 12, 12), 100, np.uint8)
    red[0, 5, 5] += 60
    assert {n: measure(grey)[n] for n in ("peaks", "specks", "colour_specks")} == {
        "peaks": 1 / 100,
        "specks": 60,
        "colour_specks": 0,
    }
    assert {n: measure(red)[n] for n in ("peaks", "specks", "colour_specks")} == {
        "peaks": 1 / 300,
        "specks": 60,
        "colour_specks": 40,
    }


def test_a_ramp_has_no_peak():
    """Values between their neighbours, however steep, are no extremes; nor is what a neighbour equals."""
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8), (3, 32, 32))
    assert measure(ramp)["peaks"] == measure(ramp)["specks"] == 0


def test_fine_detail_is_the_diagonal_band():
    """A checkerboard of +-10 has a diagonal detail of 20 everywhere, stripes have none; grey has none in colour."""
    board = np.indices((32, 32)).sum(0) % 2 * 20 + 100
    stripes = np.indices((32, 32))[0] % 2 * 20 + 100
    grey = measure(np.stack([board] * 3).astype(np.uint8))
    assert (grey["fine_detail"], grey["colour_detail"]) == (20, 0)
    assert measure(np.stack([stripes] * 3).astype(np.uint8))["fine_detail"] == 0
    flat = np.full((32, 32), 100)
    red = measure(np.stack([board, flat, flat]).astype(np.uint8))
    assert red["fine_detail"] == pytest.approx(20 / 3) and red["colour_detail"] == pytest.approx(80 / 9)


def test_every_statistic_has_a_reason_and_no_other():
    """The table is the vocabulary of ranges and of answers."""
    assert tuple(measure(noise())) == STATISTICS == tuple(REASONS)
    assert all(np.isfinite(value) and value >= 0 for value in measure(noise()).values())


def test_both_ends_of_a_range_belong_to_it():
    """Inside at the ends; outside, the first statistic out of range gives the reason, in the ranges' order."""
    statistics = {"colours": 0.5, "gaps": 0.2}
    assert outside(statistics, {"colours": (0.5, 0.5), "gaps": (0.2, 1)}) is None
    assert outside(statistics, {"colours": (0.6, 1), "gaps": (0, 0.1)}) == "few colours"
    assert outside(statistics, {"gaps": (0, 0.1), "colours": (0.6, 1)}) == "grey levels are missing"
    assert outside(statistics, {}) is None


def test_a_range_of_something_that_was_not_measured_is_an_error():
    """A contract of a later version is not read as "inside"."""
    with pytest.raises(KeyError):
        outside(measure(noise()), {"entropy": (0, 1)})


def test_the_page_explains_every_reason_that_an_answer_may_give():
    """docs/domain.md: beside each `why` stands its statistic, and those of the file."""
    page = (ROOT / "docs/domain.md").read_text("utf-8")
    section = page.partition("## Why `calibrated` is false")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| `")]
    for name, (under, over) in REASONS.items():
        assert any(f"`{under}`" in row and f"`{over}`" in row and f"`{name}`" in row for row in rows), name
    for why in (*typing.get_args(Unusual), *typing.get_args(Altered)):
        assert any(f"`{why}`" in row for row in rows), why


@pytest.mark.parametrize("shape", [(3, 3), (3, 9), (7, 4), (32, 32)])
def test_neighbours_are_never_those_across_the_end_of_a_row(shape: tuple[int, int]):
    """The same figures as from each pixel with its own four neighbours, in pictures of any shape."""
    image = np.random.default_rng(3).integers(0, 256, (3, *shape), np.uint8)
    image[:, :, -1] //= 4
    levels = image.astype(int)
    planes = np.concatenate([levels, 3 * levels - levels.sum(0)])
    heights: list[list[int]] = [[], []]
    details: list[list[int]] = [[], []]
    for plane, row, column in itertools.product(range(6), range(shape[0]), range(shape[1])):
        p = planes[plane]
        if 0 < row < shape[0] - 1 and 0 < column < shape[1] - 1:
            beside = [p[row - 1, column], p[row + 1, column], p[row, column - 1], p[row, column + 1]]
            heights[plane // 3].append(max(p[row, column] - max(beside), min(beside) - p[row, column]))
        if row and column:
            details[plane // 3].append(
                abs(p[row, column] - p[row, column - 1] - p[row - 1, column] + p[row - 1, column - 1])
            )
    found = measure(image)
    assert found["peaks"] == sum(height > 0 for height in heights[0]) / len(heights[0])
    assert (found["specks"], found["colour_specks"]) == (max(0, *heights[0]), max(0, *heights[1]) / 3)
    assert found["fine_detail"] == sum(details[0]) / len(details[0]) / 2
    assert found["colour_detail"] == sum(details[1]) / len(details[1]) / 6
