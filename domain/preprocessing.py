"""A decoded picture as a network sees it: the contract's `preprocessing`, one definition for training and serving."""

from __future__ import annotations

from PIL import Image

from .colour import to_srgb

DRAFT_GAP = 4  # a JPEG is decoded at no less than this many times the target size, then filtered

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def prepared(
    image: Image.Image, size: int, *, orientation: int | None = None, profile: bytes | None = None
) -> tuple[Image.Image, bool]:
    """An image of any mode and shape as RGB, `size` x `size`, and whether its colours are known.

    Upright by its EXIF orientation (1 to 8), transparency over white, the centre square of the short side, scaled by an
    antialiased bilinear filter, colours of an embedded profile (ICC) to sRGB. They are not known where the profile says
    nothing about such an image; it is taken for sRGB then.
    """
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    image = _opaque(image, keep=profile is not None)
    if image.size != (size, size):
        image = _centre_square(image, size)
    known = True
    if profile is not None:
        # After scaling, when there are few pixels.
        converted = to_srgb(image, profile)
        known = converted is not None
        image = converted or image
    return image if image.mode == "RGB" else image.convert("RGB"), known


def _opaque(image: Image.Image, keep: bool = False) -> Image.Image:
    """Transparency laid over white, and RGB; `keep` leaves grey and CMYK as they are."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if keep and image.mode in ("L", "CMYK") else image.convert("RGB")


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    """The centre square of the short side, scaled to `size`; antialiased, because Pillow widens the filter.

    One step in place of scaling and then cropping: a ribbon of 60,000 x 8 pixels never becomes a large image.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
