"""Images in memory, pixels as uint8 until a network needs them: 180 MB for a CIFAR, 1.4 GB for Tiny-ImageNet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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

    def on(self, device: torch.device) -> Split:
        """The images where there is room for them: on `device` with at least as much left over, or where they are."""
        if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 2 * self.images.numel():
            return self
        return Split(self.images.to(device), self.labels.to(device))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x float32 [n,3,H,W] in [0,1], y int64 [n]) in order."""
        for start in range(0, len(self), size):
            yield to_pixels(self.images[start : start + size]), self.labels[start : start + size]


@dataclass(frozen=True)
class ImageSet:
    """A data set in three parts; checkpoints and thresholds are chosen on `validation`, never on `test`.

    notes: what whoever trains on it should know, a line each.
    """

    train: Split
    validation: Split
    test: Split
    labels: list[str]
    notes: Sequence[str] = ()


def divided(whole: Split, test: Split, validation_images: int, labels: list[str]) -> ImageSet:
    """The training images in the order of the split's seed, the first ones of it held out for validation."""
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(SPLIT_SEED))
    validation, rest = order[:validation_images], order[validation_images:]
    return ImageSet(
        train=Split(whole.images[rest], whole.labels[rest]),
        validation=Split(whole.images[validation], whole.labels[validation]),
        test=test,
        labels=labels,
    )


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [N,3,H,W] -> float32 in [0,1], channels last in memory (what convolutions like best)."""
    return images.to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)


def to_bytes(x: Tensor) -> Tensor:
    """[N,3,H,W] in [0,1] -> uint8, rounded; TypeError for what is bytes already, since 255 times a byte overflows."""
    if not x.is_floating_point():
        raise TypeError(f"pixels in [0,1] are floating point numbers, not {x.dtype}")
    return (x * 255).round().to(torch.uint8)
