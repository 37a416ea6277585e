"""The measurement of the query guard: what it sends, and that its page tells what it found."""

from __future__ import annotations

import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import guard_attacks, query_guard
from benchmarks.harness.report import RESULTS
from benchmarks.honest_traffic import traffic
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


@pytest.mark.parametrize(
    "variant", [guard_attacks.noisy, guard_attacks.shifted, guard_attacks.cropped, guard_attacks.waved]
)
def test_a_disguise_is_an_image_and_another_one_each_time(variant: guard_attacks.Variant) -> None:
    rng = np.random.default_rng(0)
    made = [variant(IMAGES[0], rng) for _ in range(20)]
    assert {(image.dtype, image.shape) for image in made} == {(np.dtype(np.uint8), (3, 32, 32))}
    assert len({image.tobytes() for image in made}) > 5


def test_the_page_is_made_of_the_figures_beside_it() -> None:
    """No figure was typed by hand."""
    told = json.loads((RESULTS / "query_guard.json").read_text("utf-8"))
    assert (RESULTS / "query_guard.md").read_text("utf-8") == query_guard.markdown(told)
