"""An encoded image to the pixels that the network sees, and the only place where a decoder's exceptions are caught.

Only PNG, JPEG and WebP are opened, recognised by their first bytes, whatever content type the client declares.
Preprocessing: orientation by EXIF, transparency over white, RGB, the centre square of the short side, scaled to the
model's size by an antialiased bilinear filter (the contract's `preprocessing`), colours of an embedded profile to sRGB.
"""

from __future__ import annotations

import logging
import warnings
from typing import NamedTuple

from PIL import Image, WebPImagePlugin

from ...errors import ImageError, UnsupportedMedia
from . import colour, jpeg, png
from .file import ImageFile, Unusual, refuse
from .webp import WebPFile

log = logging.getLogger("awnet.images")


# Pillow loads its readers on first use, and all forty of them (10 MB, 70 ms) where one is missing. No request should
# pay for that, and no other reader has any business here.
READERS = (WebPImagePlugin.WebPImageFile,)
Image.preinit()

Image.MAX_IMAGE_PIXELS = None  # the server's own limit holds, checked before anything is decoded
warnings.filterwarnings("ignore", module=r"PIL(\..*)?")  # whatever is wrong with a client's file is the client's

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")


class Decoded(NamedTuple):
    """rgb: size * size * 3 bytes, row by row; and what no threshold speaks for."""

    rgb: bytes
    unusual: Unusual | None


def read(data: bytes) -> ImageFile:
    """The structure of an encoded image; nothing of it is decoded.

    Raises:
        UnsupportedMedia: neither PNG, JPEG nor WebP.
        AnimatedImage: more than one frame.
        ImageError: truncated, corrupt, or made to be slow.
    """
    if data.startswith(png.SIGNATURE):
        return png.PNGFile(data)
    if data.startswith(jpeg.SIGNATURE):
        return jpeg.JPEGFile(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPFile(data)
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC + _AVIF:
        name = "HEIC" if data[8:12] in _HEIC else "AVIF"
        raise UnsupportedMedia(
            f"the image is {name}, which is not accepted here: save or export it as JPEG, PNG or WebP "
            "(an iPhone takes JPEG with Settings > Camera > Formats > Most Compatible)"
        )
    raise UnsupportedMedia("the image is none of PNG, JPEG, WebP")


def decode(file: ImageFile, size: int) -> Decoded:
    """The image as the network sees it. Raises ImageError where its pixels cannot be had."""
    try:
        image = file.image(size)
        image, unusual = _finished(file, image, size)
    except ImageError:
        raise
    except Exception as error:  # a decoder's own, of which there are many; what a client sent is never our fault
        log.debug("a decoder failed", exc_info=True)
        raise refuse(file.format, "is truncated or corrupt") from error
    return Decoded(image.tobytes(), unusual)


def _finished(file: ImageFile, image: Image.Image, size: int) -> tuple[Image.Image, Unusual | None]:
    """The pixels upright, opaque, square and in sRGB, and what no threshold speaks for."""
    unusual = file.unusual
    profile = file.profile()
    if file.orientation in _TURNS:
        image = image.transpose(_TURNS[file.orientation])
    image = _opaque(image, keep=profile is not None)
    if image.size != (size, size):
        image = _centre_square(image, size)
    if profile is not None:
        # After scaling, when there are few pixels.
        converted = colour.to_srgb(image, profile)
        if converted is None:
            unusual = unusual or "colour profile"
        else:
            image = converted
    return image if image.mode == "RGB" else image.convert("RGB"), unusual


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
