"""Batches of a training: shuffled, and augmented on tensors.

There are no loader processes: a batch is one indexing operation, on a GPU too. An image's augmentation is a function of
the seed, the epoch and the image's number, so a resumed run repeats bit for bit and any number of processes agree.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.rng import KeyedRng
from .images import Split, to_pixels


def crop_and_flip(images: Tensor, rng: KeyedRng, padding: int = 4) -> Tensor:
    """RandomCrop(H, padding) and a horizontal flip of half of the images; any dtype and device, [N,3,H,W]."""
    n, _, height, width = images.shape
    device = images.device
    padded = F.pad(images, (padding,) * 4) if padding else images
    top, left = (rng.fractions("crop", 2) * (2 * padding + 1)).long().T  # [N] each
    flip = rng.mirrored()
    rows = top[:, None] + torch.arange(height, device=device)  # [N, H]
    columns = torch.arange(width, device=device).expand(n, width)
    columns = left[:, None] + torch.where(flip[:, None], columns.flip(1), columns)  # [N, W]
    which = torch.arange(n, device=device)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # [N,3,H,W], channels last in memory


def shuffled_batches(
    split: Split,
    size: int,
    seed: int,
    epoch: int,
    padding: int = 4,
    *,
    first: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor, KeyedRng]]:
    """One epoch from batch number `first` on, shuffled and augmented: (x float32 [n,3,H,W] in [0,1], y int64 [n], the
    random numbers of these images), on `device`. The last short batch of the epoch is dropped.

    Of each batch of `size` images, process `rank` gets the `rank`-th of `world_size` equal contiguous shares. How one
    image is augmented follows from seed, epoch and image alone.

    A detector must be trained with `padding` 0. The black border of a shifted image is exactly black in clean
    images and not in attacked ones: a detector reads just that, and is blind without a border.
    """
    device = device or split.images.device
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
    order = order.to(split.images.device)  # once an epoch
    own = size // world_size
    for number in range(first, len(order) // size):
        start = number * size + rank * own
        index = order[start : start + own]
        rng = KeyedRng.of(seed, epoch, number, index.to(device))
        images = split.images[index].to(device)
        yield to_pixels(crop_and_flip(images, rng, padding)), split.labels[index].to(device), rng
