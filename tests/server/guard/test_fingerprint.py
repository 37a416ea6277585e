"""Images that look alike have fingerprints that are close, others have not; whatever the size."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from server.guard.fingerprint import Fingerprints
from server.guard.window import NEAR, OVERLAP

Pixels = NDArray[np.uint8]
FINGERPRINTS = Fingerprints(bytes(range(32)))


def picture(seed: int, size: int = 32) -> Pixels:
    """Something with large and small structure, as photographs have it, [3,size,size]."""
    rng = np.random.default_rng(seed)
    layers = []
    for side in (3, 6, 12, 24):
        small = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        layers.append(np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float64) / side)
    mixed = sum(layers)
    assert isinstance(mixed, np.ndarray)
    mixed = 255 * (mixed - mixed.min()) / np.ptp(mixed)
    return np.ascontiguousarray(mixed.round().astype(np.uint8).transpose(2, 0, 1))


def moved(pixels: Pixels, change: NDArray[np.int64]) -> Pixels:
    return np.clip(pixels.astype(np.int64) + change, 0, 255).astype(np.uint8)


def jpeg(pixels: Pixels) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def apart(one: Pixels, other: Pixels) -> tuple[int, int]:
    """Bits in which the perceptual hashes differ, and places at which the sketches are equal."""
    a, b = FINGERPRINTS.of(one), FINGERPRINTS.of(other)
    return (a.perceptual ^ b.perceptual).bit_count(), int((a.sketch == b.sketch).sum())


def alike(one: Pixels, other: Pixels) -> bool:
    bits, equal = apart(one, other)
    return bits <= NEAR or equal >= OVERLAP


@pytest.mark.parametrize("seed", range(8))
def test_what_attacks_do_to_an_image_leaves_it_alike(seed: int) -> None:
    """Signs of 8 levels on every value, vertical stripes, squares, Gaussian noise."""
    rng, image = np.random.default_rng(seed), picture(seed)
    stripes = rng.choice([-8, 8], (3, 1, 32))
    square = np.zeros((3, 32, 32), np.int64)
    square[:, 4:20, 8:24] = rng.choice([-8, 8], (3, 1, 1))
    for change in (rng.choice([-8, 8], (3, 32, 32)), stripes, square, rng.normal(0, 8, (3, 32, 32)).astype(np.int64)):
        assert alike(image, moved(image, change))


@pytest.mark.parametrize("seed", range(8))
def test_a_shifted_image_is_alike_by_its_sketch(seed: int) -> None:
    """By two pixels both ways, which the perceptual hash does not forgive."""
    padded = np.pad(picture(seed), ((0, 0), (2, 2), (2, 2)), mode="edge")
    bits, equal = apart(padded[:, 2:34, 2:34], np.ascontiguousarray(padded[:, 4:, 4:]))
    assert bits > NEAR
    assert equal >= OVERLAP


@pytest.mark.parametrize("seed", range(8))
def test_a_compressed_image_is_alike(seed: int) -> None:
    assert alike(picture(seed), jpeg(picture(seed)))


def test_other_images_are_not_alike() -> None:
    """Of 19,900 pairs none by the perceptual hash, and hardly any of these smooth ones by the sketch."""
    found = [FINGERPRINTS.of(picture(seed)) for seed in range(200)]
    bits = [(a.perceptual ^ b.perceptual).bit_count() for n, a in enumerate(found) for b in found[:n]]
    equal = [int((a.sketch == b.sketch).sum()) for n, a in enumerate(found) for b in found[:n]]
    assert min(bits) > NEAR
    assert sum(places >= OVERLAP for places in equal) <= 4


def test_pictures_of_one_colour_are_not_all_alike() -> None:
    """They have no structure to compare, and a catalogue of paints is no attack."""
    paints = [np.broadcast_to(np.uint8([[[10 * n]], [[255 - n]], [[7]]]), (3, 32, 32)) for n in range(20)]
    assert not any(alike(paints[n], paints[m]) for n in range(20) for m in range(n))


def test_white_around_a_thing_makes_no_two_things_alike() -> None:
    """Patches of one level are no evidence."""
    things = []
    for seed in range(40):
        page = np.full((3, 32, 32), 255, np.uint8)
        page[:, 8:24, 8:24] = picture(seed, 16)
        things.append(FINGERPRINTS.of(page))
    equal = [int((a.sketch == b.sketch).sum()) for n, a in enumerate(things) for b in things[:n]]
    assert max(equal) < OVERLAP


def test_the_smallest_size_has_a_fingerprint() -> None:
    """Of 8 pixels a side nothing is promised but that."""
    assert alike(picture(1, 8), picture(1, 8))


@pytest.mark.parametrize("size", [24, 32, 47, 64, 224])
def test_every_size_has_a_fingerprint(size: int) -> None:
    image = picture(1, size)
    assert alike(image, moved(image, np.random.default_rng(0).choice([-8, 8], image.shape)))
    assert not alike(image, picture(2, size))


def test_another_key_makes_other_sketches() -> None:
    """Or images that collide could be made at home."""
    other = Fingerprints(bytes(range(1, 33)))
    equal = [(FINGERPRINTS.of(picture(n)).sketch == other.of(picture(n)).sketch).sum() for n in range(20)]
    assert max(equal) < OVERLAP


def test_another_key_makes_other_numbers_of_the_same_pixels() -> None:
    """Whatever PYTHONHASHSEED says: a number that is the same in every process can be made to collide at home."""
    other = Fingerprints(bytes(range(1, 33)))
    assert FINGERPRINTS.of(picture(0)).exact != other.of(picture(0)).exact
    assert FINGERPRINTS.number(b"192.0.2.1") != other.number(b"192.0.2.1")
    assert FINGERPRINTS.number(b"192.0.2.1") == Fingerprints(bytes(range(32))).number(b"192.0.2.1")
