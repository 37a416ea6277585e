"""Sources of the random numbers of a training step, behind one interface.

`Rng` draws from torch's global generator, which a test or an evaluation seeds. `KeyedRng` computes each number by a
hash of (seed, epoch, image, purpose): an image gets the same crop and the same start of its attack in whatever batch,
process or order it comes, on any device, and a run resumed in the middle of an epoch needs no generator state.

The texts given as `purpose` are hashed: changing one changes the numbers, and with them every training.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a stream is key + 1 G, key + 2 G, ..., each scrambled.
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK = (1 << 64) - 1


class Rng:
    """Random numbers for the N images of a batch, from torch's global generator. `purpose` names the draw."""

    def __getitem__(self, images: slice) -> Rng:
        """The source for some images of the batch."""
        return self

    def uniform(self, x: Tensor, low: float, high: float, purpose: str) -> Tensor:
        """Uniform in [low, high), shaped like x [N,...]."""
        return torch.empty_like(x).uniform_(low, high)

    def normal(self, x: Tensor, purpose: str) -> Tensor:
        """Standard normal, shaped like x [N,...]."""
        return torch.randn_like(x)

    def signs(self, x: Tensor, purpose: str) -> Tensor:
        """-1 or 1, shaped like x [N,...]."""
        return torch.randint_like(x, 0, 2) * 2 - 1

    def number(self, low: float, high: float, purpose: str) -> float:
        """One number in [low, high) for the whole step."""
        return float(torch.empty(()).uniform_(low, high))

    def integer(self, low: int, high: int, purpose: str) -> int:
        """One of low, ..., high - 1 for the whole step."""
        return int(torch.randint(low, high, ()))

    def choice(self, values: Sequence[float], purpose: str) -> float | Tensor:
        """One of `values` for the whole step, as a factor: a number, or a tensor that holds it."""
        return values[self.integer(0, len(values), purpose)]

    def seed(self, microbatch: int) -> None:
        """Seed what draws from torch's generator by itself (dropout), before the loss of a step's microbatch."""


GLOBAL_RNG = Rng()


@dataclass(frozen=True)
class KeyedRng(Rng):
    """Random numbers that follow from the image, not from its place in a batch.

    Attributes:
        keys: int64 [N], one stream an image, on the device of the images.
        step: the stream of what a whole step shares; the same in every process.
        index: int64 [N], the numbers of the training images.
    """

    keys: Tensor
    step: int
    index: Tensor

    @classmethod
    def of(cls, seed: int, epoch: int, step: int, index: Tensor) -> KeyedRng:
        """For the training images number `index` (int64 [N]), which are met in `step` of `epoch`."""
        keys = _scrambled(index * _signed(GOLDEN) + _signed(_key(seed, epoch)))
        return cls(keys, _key(seed, epoch, step), index)

    def __getitem__(self, images: slice) -> KeyedRng:
        return KeyedRng(self.keys[images], self.step, self.index[images])

    def mirrored(self) -> Tensor:
        """Which images of the batch are mirrored: bool [N]."""
        return self.fractions("flip") < 0.5

    def words(self, purpose: str, *shape: int) -> Tensor:
        """64 random bits for each element of an image: int64 [N,*shape]."""
        keys = _scrambled(self.keys ^ _signed(_key(zlib.crc32(purpose.encode()))))
        counter = torch.arange(1, math.prod(shape) + 1, device=keys.device)
        return _scrambled(keys[:, None] + counter * _signed(GOLDEN)).view(-1, *shape)

    def fractions(self, purpose: str, *shape: int) -> Tensor:
        """Uniform in [0, 1) in steps of 2^-24, float32 [N,*shape]."""
        return _shifted(self.words(purpose, *shape), 40).float() / (1 << 24)

    def uniform(self, x: Tensor, low: float, high: float, purpose: str) -> Tensor:
        return low + (high - low) * self.fractions(purpose, *x.shape[1:]).to(x.dtype)

    def normal(self, x: Tensor, purpose: str) -> Tensor:
        """By the inverse of the distribution function, at 2^23 points that lie symmetrically: 5.2 sigma at most."""
        odd = 2 * _shifted(self.words(purpose, *x.shape[1:]), 41) + 1 - (1 << 23)
        return math.sqrt(2) * torch.erfinv(odd.float() / (1 << 23)).to(x.dtype)

    def signs(self, x: Tensor, purpose: str) -> Tensor:
        return (2 * _shifted(self.words(purpose, *x.shape[1:]), 63) - 1).to(x.dtype)

    def number(self, low: float, high: float, purpose: str) -> float:
        return low + (high - low) * (self._shared(purpose) >> 11) / (1 << 53)

    def integer(self, low: int, high: int, purpose: str) -> int:
        return low + self._shared(purpose) % (high - low)

    def seed(self, microbatch: int) -> None:
        torch.manual_seed(_key(self.step, microbatch) >> 1)

    def _shared(self, purpose: str) -> int:
        return _key(self.step, zlib.crc32(purpose.encode()))


def _key(*words: int) -> int:
    """A 64-bit key that depends on every word and on their order."""
    key = 0
    for word in words:
        key = (key + word + GOLDEN) & MASK
        key = (key ^ key >> 30) * FIRST & MASK
        key = (key ^ key >> 27) * SECOND & MASK
        key ^= key >> 31
    return key


def _signed(word: int) -> int:
    """The int64 with the bits of a 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


def _shifted(z: Tensor, bits: int) -> Tensor:
    """z >> bits without the sign that int64 would drag along."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _scrambled(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64, whose products wrap round."""
    z = (z ^ _shifted(z, 30)) * _signed(FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(SECOND)
    return z ^ _shifted(z, 31)
