"""Pixels in the colours of an embedded profile (ICC) to sRGB, by LittleCMS."""

from __future__ import annotations

import functools
import io

from PIL import Image, ImageCms

NEAR = 2  # levels: a profile that moves no colour by more is sRGB itself, and pixels are left as they are
_SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # of profiles, and the mode that they speak for
_STEPS = 9  # of a grid of colours by which a profile is compared with sRGB


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The image, mode L, RGB or CMYK, as RGB in sRGB; None where the profile says nothing about it."""
    mode = _SPACES.get(profile[16:20])
    if mode is None or (mode == "CMYK") != (image.mode == "CMYK"):
        return None
    if mode == "L" and image.mode != "L":
        return None
    try:
        transform = _transform(profile, mode)
        return image.convert("RGB") if transform is None else ImageCms.applyTransform(image.convert(mode), transform)
    except Exception:  # LittleCMS and Pillow's cover of it have many
        return None


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform to sRGB; None where it changes nothing."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    intent = ImageCms.Intent(ImageCms.getDefaultIntent(opened))
    transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB", intent)
    if mode == "CMYK":
        return transform
    levels = [step * 255 // (_STEPS - 1) for step in range(_STEPS)]
    if mode == "L":
        grid, side = bytes(levels), _STEPS
        before = Image.frombytes("L", (side, 1), grid)
    else:
        grid = bytes(level for red in levels for green in levels for blue in levels for level in (red, green, blue))
        before = Image.frombytes("RGB", (_STEPS * _STEPS, _STEPS), grid)
    after = ImageCms.applyTransform(before, transform)
    assert after is not None
    same = before.convert("RGB").tobytes()
    return None if all(abs(a - b) <= NEAR for a, b in zip(same, after.tobytes(), strict=True)) else transform
