"""Benign images are changed as their titles say, alike for the same seed, and stay images."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from domain.corruptions import CORRUPTIONS, STRENGTHS, Corruption, elastic
from domain.statistics import measure

PAIRS = [(name, strength) for name in CORRUPTIONS for strength in STRENGTHS]
# Kinds whose strengths are so many ways of doing one thing; of the others a higher strength changes more.
UNORDERED = {"brightness", "gamma", "saturation", "scaled_bilinear", "scaled_bicubic", "scaled_lanczos", "screenshot"}


def pictures(n: int = 6) -> np.ndarray:
    """Smooth pictures with edges and some texture, each another, uint8 [n,3,32,32]."""
    rng = np.random.default_rng(5)
    y, x = np.indices((32, 32)) / 31
    out = np.empty((n, 3, 32, 32))
    for image in out:
        a, b, c = rng.uniform(0.1, 0.6, 3), rng.uniform(-0.3, 0.3, 3), rng.uniform(-0.3, 0.3, 3)
        image[:] = a[:, None, None] + b[:, None, None] * x + c[:, None, None] * y + 0.2
        image[:, 8:24, 10:22] += rng.uniform(-0.2, 0.2, 3)[:, None, None]
        image += 0.05 * np.sin(rng.uniform(5, 30) * x + rng.uniform(5, 30) * y)
    return np.rint(np.clip(out, 0, 1) * 255).astype(np.uint8)


def moved(name: str, strength: int, images: np.ndarray) -> float:
    """Mean absolute change in grey levels."""
    return float(np.abs(CORRUPTIONS[name].apply(images, strength).astype(int) - images).mean())


def test_the_table_is_as_large_as_promised() -> None:
    """Sixteen kinds may be trained and calibrated on; at least as many are only ever judged on."""
    groups = [kind.group for kind in CORRUPTIONS.values()]
    assert groups.count("training") == 16 and groups.count("judging") >= 16
    assert all(name == kind.name and kind.title for name, kind in CORRUPTIONS.items())


@pytest.mark.parametrize(("name", "strength"), PAIRS)
def test_every_change_keeps_shape_type_and_input(name: str, strength: int) -> None:
    """uint8 of the same shape, another image, by the same seed the same one; the input is left as it was."""
    images = pictures()
    before = images.copy()
    changed = CORRUPTIONS[name].apply(images, strength, seed=3)
    assert changed.dtype == np.uint8 and changed.shape == images.shape
    assert np.array_equal(images, before)
    assert not np.array_equal(changed, images) and not np.shares_memory(changed, images)
    assert np.array_equal(CORRUPTIONS[name].apply(images, strength, seed=3), changed)


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - UNORDERED))
def test_the_strongest_changes_more_than_the_weakest(name: str) -> None:
    """Strength 5 against strength 1."""
    images = pictures()
    assert moved(name, 5, images) > moved(name, 1, images)


def test_another_seed_gives_other_noise() -> None:
    """And another strength is not the same noise scaled."""
    images = pictures()
    first, second = (CORRUPTIONS["gaussian_noise"].apply(images, 3, seed) for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 32, 48), (0, 3, 32, 32)])
def test_any_size_is_taken(shape: tuple[int, ...]) -> None:
    """Images of Tiny-ImageNet, oblong ones, and none at all."""
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for kind in CORRUPTIONS.values():
        assert kind.apply(images, 3).shape == shape


def test_what_is_no_image_or_no_strength_is_refused() -> None:
    """In one sentence each."""
    kind = CORRUPTIONS["jpeg"]
    with pytest.raises(ValueError, match="strengths are 1 to 5, not 0"):
        kind.apply(pictures(), 0)
    with pytest.raises(ValueError, match="not float64"):
        kind.apply(pictures() / 255, 3)
    with pytest.raises(ValueError, match=r"\[6, 32, 32\]"):
        kind.apply(pictures()[:, 0], 3)


@pytest.mark.parametrize(("strength", "sigma"), [(1, 1), (2, 2), (3, 4), (4, 8)])
def test_gaussian_noise_has_the_sigma_of_its_title(strength: int, sigma: float) -> None:
    """In grey levels."""
    flat = np.full((8, 3, 32, 32), 120, np.uint8)
    noise = CORRUPTIONS["gaussian_noise"].apply(flat, strength).astype(int) - 120
    assert noise.std() == pytest.approx(np.sqrt(sigma**2 + 1 / 12), rel=0.05)


def test_sign_noise_moves_every_value_by_its_radius() -> None:
    """Plus or minus 4 each with a chance of one half; cut at the ends of the range."""
    noise = CORRUPTIONS["sign_noise"].apply(np.full((4, 3, 32, 32), 100, np.uint8), 3).astype(int) - 100
    assert set(np.unique(noise)) == {-4, 4} and abs(noise.mean()) < 0.3
    assert CORRUPTIONS["sign_noise"].apply(np.full((1, 3, 8, 8), 253, np.uint8), 3).max() == 255


def test_colours_are_as_few_as_the_titles_say() -> None:
    """Palettes by the image, levels by the channel."""
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 32, 32), np.uint8)
    for name, strength, most in (("palette", 1, 256), ("palette_dithered", 5, 32)):
        for image in CORRUPTIONS[name].apply(images, strength):
            assert measure(image)["colours"] * 1024 <= most
    for name in ("posterise", "dithered"):
        assert len(np.unique(CORRUPTIONS[name].apply(images, 3))) == 32


def test_jpeg_is_what_pillow_writes() -> None:
    """Quality 75 at strength 3, bit for bit."""
    image = pictures(1)
    file = io.BytesIO()
    Image.fromarray(image[0].transpose(1, 2, 0)).save(file, "JPEG", quality=75)
    expected = np.asarray(Image.open(file)).transpose(2, 0, 1)
    assert np.array_equal(CORRUPTIONS["jpeg"].apply(image, 3)[0], expected)


def test_grey_is_grey_and_scaling_keeps_a_flat_picture() -> None:
    """What has a fixed point keeps it."""
    grey = CORRUPTIONS["grey"].apply(pictures(), 5)
    assert np.array_equal(grey[:, 0], grey[:, 1]) and np.array_equal(grey[:, 0], grey[:, 2])
    flat = np.full((1, 3, 32, 32), 77, np.uint8)
    smooth = ("blur", "scaled", "median", "sharpen", "pixelate", "elastic", "zoom")
    for name in [name for name in CORRUPTIONS if any(word in name for word in smooth)]:
        assert np.array_equal(CORRUPTIONS[name].apply(flat, 5), flat), name


def test_a_median_filter_is_that_of_its_title() -> None:
    """3 x 3, edges mirrored, at strength 3."""
    image = pictures(1)
    padded = np.pad(image[0], ((0, 0), (1, 1), (1, 1)), "symmetric")
    around = [padded[:, i : i + 32, j : j + 32] for i in range(3) for j in range(3)]
    assert np.array_equal(CORRUPTIONS["median"].apply(image, 3)[0], np.median(around, 0))


def test_a_kind_stays_usable_as_a_function() -> None:
    """Entering it in the table leaves the function what it was."""
    own = Corruption("mine", "like elastic", "judging", elastic)
    assert own.apply(pictures(), 2).shape == pictures().shape
