"""An encoded image to the pixels that the network sees, and the only place where a decoder's exceptions are caught.

Only PNG, JPEG and WebP are opened, recognised by their first bytes, whatever content type the client declares; what
becomes of their pixels is `domain.preprocessing`, which training shares.
"""

from __future__ import annotations

import logging
import warnings
from typing import NamedTuple

from PIL import Image, WebPImagePlugin

from domain.preprocessing import prepared

from ...errors import ImageError, UnsupportedMedia
from . import jpeg, png
from .file import ImageFile, Unusual, refuse
from .webp import WebPFile

log = logging.getLogger("awnet.images")


# Pillow loads its readers on first use, and all forty of them (10 MB, 70 ms) where one is missing. No request should
# pay for that, and no other reader has any business here.
READERS = (WebPImagePlugin.WebPImageFile,)
Image.preinit()

Image.MAX_IMAGE_PIXELS = None  # the server's own limit holds, checked before anything is decoded
warnings.filterwarnings("ignore", module=r"PIL(\..*)?")  # whatever is wrong with a client's file is the client's

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
    """The pixels as the network sees them, and what no threshold speaks for."""
    image, known = prepared(image, size, orientation=file.orientation, profile=file.profile())
    return image, file.unusual or (None if known else "colour profile")
