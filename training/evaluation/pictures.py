"""Natural images, changed or from elsewhere, to judge false positives on what a network was not calibrated on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor

from domain.corruptions import CORRUPTIONS

from ..data.sets import load_cifar100
from ..data.tiny_imagenet import load_tiny_imagenet


def changed(images: Tensor, kind: str, strength: int, seed: int = 0) -> Tensor:
    """Images after a corruption of `CORRUPTIONS`: uint8 [N,3,H,W], on the CPU."""
    return torch.from_numpy(CORRUPTIONS[kind].apply(images.cpu().numpy(), strength, seed))


def photographs(limit: int, size: int = 32) -> Tensor:
    """Crops of scikit-learn's two photographs (a temple, a flower; 427 x 640) at native pixels, uint8 [n,3,size,size].

    They lie side by side, without overlap, in the order of a fixed seed; there are 520 of 32 x 32.
    """
    crops = []
    for picture in load_sample_images().images:  # [H,W,3] uint8
        height, width = (n // size * size for n in picture.shape[:2])
        tiles = picture[:height, :width].reshape(height // size, size, width // size, size, 3)
        crops.append(tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3, size, size))
    whole = np.concatenate(crops)
    return torch.from_numpy(whole[np.random.default_rng(0).permutation(len(whole))[:limit]])


def scaled(images: Tensor, size: int) -> Tensor:
    """As the server scales: bilinear with antialiasing, rounded to 8 bits."""
    if images.shape[-1] == size:
        return images
    x = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).to(torch.uint8)


# Name -> (title, (data_dir, limit, size) -> uint8 [n,3,size,size]); FileNotFoundError where the set is not there.
PICTURES: dict[str, tuple[str, Callable[[Path, int, int], Tensor]]] = {
    "photographs": (
        "two large photographs, cropped at native pixels",
        lambda _data_dir, limit, size: photographs(limit, size),
    ),
    "cifar100": (
        "images of CIFAR-100",
        lambda data_dir, limit, size: scaled(load_cifar100(data_dir, False).validation.images[:limit], size),
    ),
    "tiny_imagenet": (
        "images of Tiny-ImageNet, scaled down",
        lambda data_dir, limit, size: scaled(load_tiny_imagenet(data_dir).validation.images[:limit], size),
    ),
}
