"""An image file that was read as far as its structure, and the interface that the three formats share.

Reading walks the structure of a file (chunks, segments, scans) and decodes nothing: its time grows with the bytes of
the file by a few nanoseconds each. Whatever a decoder would stumble over later, or would make an image of although
parts are missing, is refused there. Metadata never reaches a decoder: orientation and colour profile are found here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

from PIL import Image

from ...errors import ImageError

Format = Literal["PNG", "JPEG", "WEBP"]
Unusual = Literal["colour palette", "1-bit image", "colour profile"]
UNUSUAL: tuple[Unusual, ...] = get_args(Unusual)

MAX_PROFILE_BYTES = 2 << 20  # of a colour profile; printers' are the largest, with half a megabyte to one
PROFILE_COST = 4_000_000  # pixels: a transform is made of a profile in up to tens of milliseconds


class ImageFile(ABC):
    """One file, read.

    Attributes:
        width, height: as stored, pixels.
        orientation: of EXIF, 1 (upright) to 8.
        short: the data is too little for the pixels, however it is decoded.
        unusual: what no threshold speaks for, as far as the file's structure says so.
    """

    format: Format
    width: int
    height: int
    orientation: int = 1
    short: bool = False
    unusual: Unusual | None = None

    @property
    @abstractmethod
    def lossy(self) -> bool:
        """Whether the codec may have changed the pixels."""

    def reduction(self, size: int) -> int:
        """By how much the decoder itself divides the sides on the way to `size`; 1 where it cannot."""
        return 1

    def decoded_pixels(self, size: int) -> int:
        """Pixels that are decoded on the way to an image of `size`."""
        by = self.reduction(size)
        return -(-self.width // by) * -(-self.height // by)

    @abstractmethod
    def cost(self, size: int) -> int:
        """The most that decoding may take, in pixels: a unit is what a pixel of a plain PNG takes, some 10 ns."""

    @abstractmethod
    def profile(self) -> bytes | None:
        """The embedded colour profile (ICC); empty where it cannot be read or is larger than MAX_PROFILE_BYTES."""

    @abstractmethod
    def image(self, size: int) -> Image.Image:
        """The pixels as stored, reduced by `reduction(size)`, in any mode. Raises ImageError, or what Pillow raises."""


def refuse(kind: Format, what: str) -> ImageError:
    """The error that a file of this format is refused with."""
    return ImageError(f"the {kind} image {what}")
