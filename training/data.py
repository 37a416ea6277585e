"""CIFAR-10 in memory: fixed splits, pixels as uint8 until a network needs them, augmentation on tensors.

Everything a training needs fits in 180 MB, so there are no loader processes: a batch is one indexing
operation, and its augmentation is a function of an explicit generator, which is what makes a resumed run
repeat bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR10

VALIDATION_IMAGES = 5_000
SPLIT_SEED = 20_240  # fixed for good: every checkpoint and report depends on it


@dataclass(frozen=True)
class Split:
    """images uint8 [N,3,H,W], labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, limit: int | None) -> Split:
        """The first `limit` images (all where it is None); the order was shuffled once by the split's seed."""
        return self if limit is None else Split(self.images[:limit], self.labels[:limit])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x float32 [n,3,H,W] in [0,1], y int64 [n]) in order."""
        for start in range(0, len(self), size):
            yield to_pixels(self.images[start : start + size]), self.labels[start : start + size]


@dataclass(frozen=True)
class ImageSet:
    """A data set in three parts; checkpoints and thresholds are chosen on `validation`, never on `test`."""

    train: Split
    validation: Split
    test: Split
    labels: list[str]


def load_cifar10(data_dir: Path, download: bool = True) -> ImageSet:
    """CIFAR-10 (Krizhevsky 2009) as 45,000 / 5,000 / 10,000 images.

    Raises:
        FileNotFoundError: the set is not under `data_dir` and cannot be downloaded; names what to do.
    """
    try:
        train = CIFAR10(str(data_dir), train=True, download=False)
        test = CIFAR10(str(data_dir), train=False, download=False)
    except RuntimeError:
        if not download:
            raise FileNotFoundError(_missing(data_dir)) from None
        try:
            train = CIFAR10(str(data_dir), train=True, download=True)
            test = CIFAR10(str(data_dir), train=False, download=True)
        except Exception as error:  # URLError, RuntimeError, OSError: torchvision raises what the transfer raises
            raise FileNotFoundError(f"{_missing(data_dir)} (download failed: {error})") from error
    whole, held_out = _split_of(train), _split_of(test)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(SPLIT_SEED))
    validation, rest = order[:VALIDATION_IMAGES], order[VALIDATION_IMAGES:]
    return ImageSet(
        train=Split(whole.images[rest], whole.labels[rest]),
        validation=Split(whole.images[validation], whole.labels[validation]),
        test=held_out,
        labels=list(train.classes),
    )


def _missing(data_dir: Path) -> str:
    return f"CIFAR-10 is not in {data_dir}: that folder must hold cifar-10-batches-py/, the unpacked Python version"


def _split_of(dataset: CIFAR10) -> Split:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(dataset.targets))


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [N,3,H,W] -> float32 in [0,1], channels last in memory (what convolutions like best)."""
    return images.to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """RandomCrop(H, padding) and a horizontal flip of half of the images; any dtype, [N,3,H,W]."""
    n, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4) if padding else images
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    flip = torch.rand(n, generator=generator) < 0.5
    rows = top[:, None] + torch.arange(height)  # [N, H]
    columns = torch.arange(width).expand(n, width)
    columns = left[:, None] + torch.where(flip[:, None], columns.flip(1), columns)  # [N, W]
    picked = padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # [N,3,H,W], channels last in memory


def shuffled_batches(
    split: Split, size: int, generator: torch.Generator, padding: int = 4
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: (x, y) as in `Split.batches`, shuffled and augmented; the last short batch is dropped.

    A detector must be trained with `padding` 0. The black border of a shifted image is exactly black in clean
    images and not in attacked ones: a detector reads just that, and is blind without a border.
    """
    order = torch.randperm(len(split), generator=generator)
    for start in range(0, len(order) - size + 1, size):
        index = order[start : start + size]
        yield to_pixels(crop_and_flip(split.images[index], generator, padding)), split.labels[index]
