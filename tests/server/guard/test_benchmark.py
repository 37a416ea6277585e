"""The measurement of the query guard: what it sends, and that its page tells what it found."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.guard import attackers, draw_query_guard, query_guard
from benchmarks.guard.honest_traffic import traffic
from benchmarks.harness.report import RESULTS
from export.audit.black_box import Answers
from tests.server.guard.test_fingerprint import alike, picture

IMAGES = np.stack([picture(n) for n in range(40)] * 33)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_honest_traffic_is_images(split: str) -> None:
    """Of every kind the first ones."""
    rows = traffic(split, IMAGES, 0)
    assert len({row.about for row in rows}) == len(rows)
    for row in rows:
        for file in itertools.islice(row.files(), 3):
            with Image.open(io.BytesIO(file)) as image:
                assert min(image.size) >= 32, row.about


def test_a_video_moves_and_a_camera_that_stands_does_not() -> None:
    rows = {row.about: row for row in traffic("validation", IMAGES, 0)}

    def frames(about: str) -> list[bytes]:
        return list(itertools.islice(rows[about].files(), 50))

    def last_like_first(files: list[bytes]) -> bool:
        ends = (Image.open(io.BytesIO(file)).resize((32, 32)) for file in (files[0], files[-1]))
        one, other = (np.asarray(image).transpose(2, 0, 1) for image in ends)
        return alike(np.ascontiguousarray(one), np.ascontiguousarray(other))

    assert not last_like_first(frames("video, 10 fps, pan of 4 px a second"))
    still = frames("a camera that does not move, 25 fps")
    assert last_like_first(still)
    assert len(set(still)) == 50


@pytest.mark.parametrize("variant", [attackers.noisy, attackers.shifted, attackers.cropped, attackers.waved])
def test_a_disguise_is_an_image_and_another_one_each_time(variant: attackers.Variant) -> None:
    rng = np.random.default_rng(0)
    made = [variant(IMAGES[0], rng) for _ in range(20)]
    assert {(image.dtype, image.shape) for image in made} == {(np.dtype(np.uint8), (3, 32, 32))}
    assert len({image.tobytes() for image in made}) > 5


def test_the_page_is_made_of_the_figures_beside_it() -> None:
    """No figure was typed by hand."""
    report = json.loads((RESULTS / "query_guard.json").read_text("utf-8"))
    assert (RESULTS / "query_guard.md").read_text("utf-8") == query_guard.markdown(report)


def test_the_picture_is_drawn_from_the_same_figures(tmp_path: Path) -> None:
    """By the command that security.md names."""
    draw_query_guard.draw(json.loads((RESULTS / "query_guard.json").read_text("utf-8")), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as drawn, Image.open(draw_query_guard.OUT) as committed:
        assert drawn.size == committed.size


def test_an_attack_that_hides_in_noise_is_one() -> None:
    """Where the answer is the mean of the image: within its bounds it comes nearer to a wrong class."""
    asked: list[attackers.Pixels] = []

    def ask(images: attackers.Pixels) -> Answers:
        asked.append(images)
        first = images.reshape(len(images), -1).mean(axis=1) - 100.0
        return Answers(np.stack([first, np.zeros_like(first)], axis=1), np.zeros(len(images)), np.ones(len(images)))

    image = np.full((3, 8, 8), 103, np.uint8)
    attackers.estimated(ask, image, 0, 2000, np.random.default_rng(0))
    together = np.concatenate(asked).astype(int)
    assert np.abs(together - 103).max() <= attackers.EPS + 1
    assert together[-1].mean() < 101


def test_the_interval_of_a_median_covers_it() -> None:
    """In at least 95 of 100 samples; of six values it is all of them."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        low, high = query_guard.median_interval(sorted(rng.normal(0, 1, 25).tolist()))
        covered += low <= 0 <= high
    assert covered >= 940
    assert query_guard.median_interval([1.0, 2, 3, 4, 5, 6]) == (1.0, 6)
