"""Benign corruptions of natural images, to measure false positives and lost accuracy.

Each entry of `CORRUPTIONS` maps uint8 images [N,3,H,W] to uint8 images of the same shape.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def through_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Each image changed on its own as an RGB Pillow image."""
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(a)).convert("RGB")) for a in arrays])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous()


def encoded(fmt: str, quality: int) -> Callable[[Tensor], Tensor]:
    """Written to a lossy file and read back."""

    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, fmt, quality=quality)
        return Image.open(file)

    return lambda images: through_pillow(images, change)


def scaled(images: Tensor, factor: int = 4) -> Tensor:
    """Scaled up bicubically, then scaled down with the antialiased bilinear filter that the server uses."""

    def change(image: Image.Image) -> Image.Image:
        large = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
        return large.resize(image.size, Image.Resampling.BILINEAR)

    return through_pillow(images, change)


def sign_noise(images: Tensor, radius: int = 8) -> Tensor:
    """Plus or minus `radius` grey levels for every value, each with probability 1/2."""
    signs = torch.randint(0, 2, images.shape) * 2 - 1
    return (images.long() + radius * signs).clamp(0, 255).to(torch.uint8)


def gaussian_noise(images: Tensor, radius: int = 8) -> Tensor:
    """Normal noise of `radius` / 2 grey levels, cut off at `radius`: the same L-infinity ball as an attack."""
    noise = (torch.randn(images.shape) * radius / 2).round().clamp(-radius, radius)
    return (images + noise).clamp(0, 255).to(torch.uint8)


CORRUPTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "unchanged": lambda images: images,
    "jpeg_75": encoded("JPEG", 75),
    "jpeg_90": encoded("JPEG", 90),
    "webp_80": encoded("WEBP", 80),
    "scaled_x4_and_back": scaled,
    "sign_noise_8": sign_noise,
    "gaussian_noise_8": gaussian_noise,
}
