"""Pixels to a fingerprint: two images that look alike have fingerprints that are close.

Two measures of likeness, because each is blind where the other sees:

- `perceptual`, 64 bits: the signs of the lowest 8 x 8 coefficients of the cosine transform of the grey image (after C.
  Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010). Noise of any kind hardly moves
  it; a shift by two pixels does.
- `sketch`, 32 bytes: hashes of all 4 x 4 patches of the quantised grey image, of which the least in each of 32 ranges
  is kept. Shifts leave it alone; changes of all pixels do not. Patches of one level are left out, or all pictures on
  white would be alike. Hash overlap is Blacklight's idea (H. Li et al., USENIX Security 2022, arXiv 2006.14042); ranges
  in place of the smallest 50 hashes are one permutation hashing (P. Li et al., NIPS 2012, arXiv 1208.1259), and one
  byte of each is b-bit minwise hashing (P. Li, A. C. Koenig, WWW 2010, arXiv 0910.3349).

How far like images are apart is told by random sums of their values. All of it is keyed, so that nobody can look for
images that collide.
"""

from __future__ import annotations

import math
import secrets
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.images import ImageInput, Traits

SIDE = 32  # larger images are looked at in this size
LEVELS = 48.0  # of 256 that a quantised step spans
RANGES = 32
SUMS = 128
COEFFICIENTS = 8  # a side
FAINT = 20.0  # a grey image whose largest coefficient is below that, 4 levels of one wave, is as good as one colour
_LUMA = (np.array([0.299, 0.587, 0.114]) / LEVELS).astype(np.float32)
_FIRST = (np.arange(RANGES, dtype=np.uint64) << 27).astype(np.uint32)
_LAST = _FIRST + np.uint32((1 << 27) - 2)
_NONE = np.uint32(0xFFFFFFFF)
_SPREAD = np.uint32(0x9E3779B1)  # 2^32 by the golden ratio: sums of like patches end up far from each other


class Fingerprint(NamedTuple):
    """Of one image.

    Attributes:
        exact: 64 bits of its very pixels.
        perceptual: 64 bits; close in Hamming distance where images look alike.
        sketch: uint8 [RANGES]; equal in many places where images share patches.
        pixels: uint8 [3,S,S].
    """

    exact: int
    perceptual: int
    sketch: NDArray[np.uint8]
    pixels: NDArray[np.uint8]


class Fingerprints:
    """Makes fingerprints that can be compared with each other.

    Args:
        key: of the hashes, 32 bytes; default: a new one.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(32)
        words = np.frombuffer(blake2b(b"patches", digest_size=36, key=self._key).digest(), np.uint32)
        self._offset = np.float32(1 + words[0] / 2**32)  # where the steps of the quantisation lie
        # The hash of a patch is the sum of its 16 steps, of at most 7, by secret whole weights: those of its row, below
        # 2^10, times those of its column, below 2^7. It stays below 2^24, so that float32 holds it exactly.
        self._rows, self._columns = (words[1:5] >> 22 | 1).astype(np.float32), (words[5:9] >> 25 | 1).astype(np.float32)
        self._flat = self._rows.sum() * self._columns.sum()
        self._sums: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}  # by size
        self._groups: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}  # by number of values

    def number(self, data: bytes) -> int:
        """64 keyed bits of `data`; nobody outside can look for two that have the same."""
        return int.from_bytes(blake2b(data, digest_size=8, key=self._key).digest(), "little")

    def of(self, pixels: NDArray[np.uint8]) -> Fingerprint:
        """The fingerprint of pixels [3,S,S], S at least 4."""
        exact = self.number(pixels.tobytes())
        size = pixels.shape[1]
        grey = _LUMA.dot(pixels.reshape(3, -1).astype(np.float32)).reshape(size, size)  # in quantised steps
        if size > SIDE:
            grey = _shrunk(grey)
        return Fingerprint(exact, _perceptual(grey, exact), self._sketch(grey, exact), pixels)

    def sums(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Where `pixels` lie, float32 [SUMS]: the squared distance of two is the mean square difference of the images.

        Each is a sum of values at random places with random signs, a count sketch (M. Charikar et al., ICALP 2002). So
        that is an estimate, to an eighth or so, which sees a change of one value as well as one of all.
        """
        if pixels.size not in self._groups:
            rng, values = np.random.default_rng(self.number(b"sums")), -(-pixels.size // SUMS) * SUMS
            signs = (np.where(rng.random(values) < 0.5, -1.0, 1.0) / math.sqrt(values)).astype(np.float32)
            self._groups[pixels.size] = np.resize(rng.permutation(pixels.size), values), signs
        places, signs = self._groups[pixels.size]
        return np.asarray((pixels.take(places) * signs).reshape(SUMS, -1).sum(axis=1))

    def _sketch(self, grey: NDArray[np.float32], exact: int) -> NDArray[np.uint8]:
        """A byte of the least patch hash of each range; where a range has none, one of `exact`."""
        if len(grey) not in self._sums:
            self._sums[len(grey)] = _band(self._rows, len(grey)), _band(self._columns, len(grey)).T
        rows, columns = self._sums[len(grey)]
        steps = grey + self._offset
        np.floor(steps, steps)
        sums = rows.dot(steps).dot(columns)
        ordered = np.empty(sums.size + 1, np.uint32)
        ordered[-1] = _NONE
        patches = ordered[:-1].reshape(sums.shape)
        np.multiply(sums.astype(np.uint32), _SPREAD, patches)
        patches[sums == steps[:-3, :-3] * self._flat] = _NONE
        ordered.sort()
        least = ordered[ordered[:-1].searchsorted(_FIRST)]
        own = np.frombuffer(exact.to_bytes(8, "little") * (RANGES // 8), np.uint8)
        return np.where(least <= _LAST, (least ^ least >> 11).astype(np.uint8), own)


class Watched:
    """An image of a request whose fingerprint is made where its pixels are: in the threads of the engine.

    Args:
        known: its fingerprint, where it was made before.
    """

    __slots__ = ("_fingerprint", "_fingerprints", "_image")

    def __init__(self, image: ImageInput, fingerprints: Fingerprints, known: Fingerprint | None = None) -> None:
        self._image = image
        self._fingerprints = fingerprints
        self._fingerprint = known

    @property
    def fingerprint(self) -> Fingerprint:
        assert self._fingerprint is not None, "pixels() comes first"
        return self._fingerprint

    @property
    def traits(self) -> Traits:
        return self._image.traits

    def pixels(self, size: int) -> NDArray[np.uint8]:
        pixels = self._image.pixels(size)
        if self._fingerprint is None:
            self._fingerprint = self._fingerprints.of(pixels)
        return pixels


def _perceptual(grey: NDArray[np.float32], exact: int) -> int:
    """Signs of the lowest coefficients but the mean; `exact` where there is nothing but one colour."""
    waves = _waves(len(grey))
    coefficients = waves.dot(grey).dot(waves.T)
    coefficients[0, 0] = 0.0
    if np.abs(coefficients).max() < FAINT:
        return exact
    return int.from_bytes(np.packbits(coefficients > 0).tobytes(), "little")


def _band(weights: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Sums by `weights` over every run of neighbours among `size` points, [size - 3, size]."""
    band = np.zeros((size - 3, size), np.float32)
    for place, weight in enumerate(weights):
        band[np.arange(size - 3), np.arange(size - 3) + place] = weight
    return band


@lru_cache(8)
def _waves(size: int) -> NDArray[np.float32]:
    """The first rows of the cosine transform (DCT-II) of `size` points, [COEFFICIENTS, size]."""
    places, row = np.arange(size) + 0.5, np.arange(COEFFICIENTS)[:, None]
    return (np.cos(np.pi * places * row / size) * SIDE / size).astype(np.float32)


def _shrunk(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    shrink = _shrink(len(grey))
    return np.asarray(shrink @ grey @ shrink.T, np.float32)


@lru_cache(8)
def _shrink(size: int) -> NDArray[np.float32]:
    """Means over equal parts, [SIDE, size]."""
    edges = np.linspace(0, size, SIDE + 1)[:, None]
    covered = np.clip(edges[1:] - np.arange(size), 0, 1) - np.clip(edges[:-1] - np.arange(size), 0, 1)
    return (covered * SIDE / size).astype(np.float32)
