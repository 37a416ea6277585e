"""Pixels to a fingerprint: two images that look alike have fingerprints that are close.

Two measures, because each is blind where the other sees:

- `perceptual`, 64 bits: the signs of the lowest 8 x 8 coefficients of the cosine transform of the grey image (after C.
  Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010). Noise of any kind hardly moves
  it; a shift by two pixels does.
- `sketch`, 32 bytes: hashes of all 4 x 4 patches of the quantised grey image, of which the least in each of 32 ranges
  is kept. Shifts leave it alone; changes of all pixels do not. Patches of one level are left out, or all pictures on
  white would be alike. Hash overlap is Blacklight's idea (H. Li et al., USENIX Security 2022, arXiv 2006.14042); ranges
  in place of the smallest 50 hashes are one permutation hashing (P. Li et al., NIPS 2012, arXiv 1208.1259), and one
  byte of each is b-bit minwise hashing (P. Li, A. C. Koenig, WWW 2010, arXiv 0910.3349).

Quantisation and hashes are keyed, so that nobody can look for images that collide.
"""

from __future__ import annotations

import secrets
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.images import ImageInput, Traits

SIDE = 32  # larger images are looked at in this size
LEVELS = 48.0  # of 256 that a quantised step spans
RANGES = 32
COEFFICIENTS = 8  # a side
FAINT = 20.0  # a grey image whose largest coefficient is below that, 4 levels of one wave, is as good as one colour
_LUMA = (np.array([0.299, 0.587, 0.114]) / LEVELS).astype(np.float32)
_FIRST = (np.arange(RANGES, dtype=np.uint64) << 27).astype(np.uint32)
_LAST = _FIRST + np.uint32((1 << 27) - 2)
_NONE = np.uint32(0xFFFFFFFF)


class Fingerprint(NamedTuple):
    """Of one image.

    Attributes:
        exact: 64 bits of its very pixels.
        perceptual: 64 bits; close in Hamming distance where images look alike.
        sketch: uint8 [RANGES]; equal in many places where images share patches.
    """

    exact: int
    perceptual: int
    sketch: NDArray[np.uint8]


class Fingerprints:
    """Makes fingerprints that can be compared with each other.

    Args:
        key: of the hashes, 32 bytes; default: a new one.
    """

    def __init__(self, key: bytes | None = None) -> None:
        words = np.frombuffer(key or secrets.token_bytes(32), np.uint32)
        self._offset = np.float32(1 + words[0] / 2**32)  # where the steps of the quantisation lie
        self._factors = words[1:5] | np.uint32(1)
        along, twice, down, lines = (int(factor) for factor in self._factors)
        self._flat = np.uint32((along + 1) * (twice + 1) * (down + 1) * (lines + 1) & 0xFFFFFFFF)

    def of(self, pixels: NDArray[np.uint8]) -> Fingerprint:
        """The fingerprint of pixels [3,S,S], S at least 4."""
        exact = hash(pixels.tobytes()) & 0xFFFFFFFFFFFFFFFF  # keyed by the interpreter, too
        size = pixels.shape[1]
        grey = (_LUMA @ pixels.reshape(3, -1).astype(np.float32)).reshape(size, size)  # in quantised steps
        if size > SIDE:
            grey = _shrunk(grey)
        own = np.frombuffer(exact.to_bytes(8, "little") * (RANGES // 8), np.uint8)
        return Fingerprint(exact, _perceptual(grey, exact), self._sketch(grey, own))

    def _sketch(self, grey: NDArray[np.float32], own: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The least patch hash of each range; where a range has none, a byte of the image's `own`."""
        along, twice, down, lines = self._factors
        steps = (grey + self._offset).astype(np.uint32)
        hashes = steps[:, :-1] * along
        hashes += steps[:, 1:]
        pairs = hashes[:, :-2] * twice
        pairs += hashes[:, 2:]
        hashes = pairs[:-1] * down
        hashes += pairs[1:]
        ordered = np.empty(hashes[2:].size + 1, np.uint32)
        ordered[-1] = _NONE
        patches = ordered[:-1].reshape(hashes[2:].shape)
        np.multiply(hashes[:-2], lines, patches)
        patches += hashes[2:]
        patches[patches == steps[:-3, :-3] * self._flat] = _NONE
        ordered.sort()
        least = ordered[ordered[:-1].searchsorted(_FIRST)]
        return np.where(least <= _LAST, (least ^ least >> 11).astype(np.uint8), own)


class Watched:
    """An image of a request whose fingerprint is made where its pixels are: in the threads of the engine."""

    __slots__ = ("_fingerprint", "_fingerprints", "_image")

    def __init__(self, image: ImageInput, fingerprints: Fingerprints) -> None:
        self._image = image
        self._fingerprints = fingerprints
        self._fingerprint: Fingerprint | None = None

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
    coefficients = waves @ grey @ waves.T
    coefficients[0, 0] = 0.0
    if np.abs(coefficients).max() < FAINT:
        return exact
    return int.from_bytes(np.packbits(coefficients > 0).tobytes(), "little")


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
