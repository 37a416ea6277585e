"""Decodes image files into uint8 arrays; every size and format limit of an image is checked here.

Only PNG, JPEG and WebP are opened, recognised by their first bytes, whatever content type the client declares.
Dimensions are checked before pixels are decoded. Preprocessing: orientation by EXIF, transparency over white, RGB, the
centre square of the short side, scaled to the model's size by an antialiased bilinear filter (the contract's
`preprocessing`).
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from domain.statistics import measure

from ..errors import AnimatedImage, ImageError, ImageTooLarge, ImageTooSmall, UnsupportedMedia

Format = Literal["PNG", "JPEG", "WEBP"]
FewColours = Literal["colour palette", "1-bit image"]
Altered = Literal["resized", "lossy"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PNG_CHUNKS = 4096  # a valid 8 MiB file has about a thousand; more is an attempt to keep the parser busy
DRAFT_GAP = 4  # a JPEG is decoded at no less than this many times the target size, then filtered
LARGE_BYTES, LARGE_PIXELS = 64 << 10, 512 * 512  # beyond either an image may take milliseconds to decode
_ORIENTATION, _QUARTER_TURNS = 0x0112, range(5, 9)
_FEW_COLOURS: dict[str, FewColours] = {"P": "colour palette", "PA": "colour palette", "1": "1-bit image"}

# What Pillow's three readers raise on broken input, found by corrupting files (see the tests).
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    EOFError,
    struct.error,
    zlib.error,
)

# Pillow loads its readers on first use, and all forty of them (10 MB, 70 ms) where one is missing. No request should
# pay for that, and no other reader has any business here.
READERS = (PngImagePlugin.PngImageFile, JpegImagePlugin.JpegImageFile, WebPImagePlugin.WebPImageFile)
Image.preinit()

# Our own limit is far below Pillow's; should a reader come across a bomb first, it must stop and not just warn.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Limits:
    """max_pixels: largest width times height; min_side: smallest width or height, pixels."""

    max_pixels: int = 16_000_000
    min_side: int = 8


class Traits(NamedTuple):
    """What decides which thresholds speak for an image, see `domains.locate`.

    Attributes:
        statistics: of the pixels that the model sees, see `domain.statistics.measure`.
        few_colours: the file's mode where it can only hold a few colours, whatever the pixels became afterwards.
        altered: what a filter of ours or a lossy codec did to the pixels, as far as the file says so.
    """

    statistics: Mapping[str, float]
    few_colours: FewColours | None = None
    altered: Altered | None = None


class DecodedImage(NamedTuple):
    """pixels [3,S,S] uint8 RGB; width and height as a viewer would show the file."""

    pixels: NDArray[np.uint8]
    format: Format
    width: int
    height: int
    resized: bool
    traits: Traits


class ImageInput(Protocol):
    """One image of a request, encoded or not.

    An engine calls `pixels` once, on one of its threads, because it may decode; `large` says beforehand that decoding
    may take milliseconds. `traits` are there afterwards.
    """

    @property
    def large(self) -> bool: ...

    @property
    def traits(self) -> Traits: ...

    def pixels(self, size: int) -> NDArray[np.uint8]:
        """[3, size, size] uint8 RGB. Raises an `errors.RequestError`."""


class PixelArray:
    """An image that is already decoded: golden inputs, tensors. `traits`: where they are known already."""

    __slots__ = ("_pixels", "_traits")

    large = False

    def __init__(self, pixels: NDArray[np.uint8], traits: Traits | None = None) -> None:
        self._pixels = pixels
        self._traits = traits

    @property
    def traits(self) -> Traits:
        assert self._traits is not None, "pixels() comes first"
        return self._traits

    def pixels(self, size: int) -> NDArray[np.uint8]:
        if self._pixels.shape != (3, size, size):
            raise ImageError(f"expected pixels of shape [3, {size}, {size}]")
        if self._traits is None:
            self._traits = Traits(measure(self._pixels))
        return self._pixels


class EncodedImage:
    """An encoded image as it came in. `decoded` is set once `pixels` has been called."""

    __slots__ = ("_data", "_index", "_limits", "decoded", "large")

    def __init__(self, data: bytes, limits: Limits, index: int = 0) -> None:
        self._data: bytes | None = data
        self._limits = limits
        self._index = index
        self.decoded: DecodedImage | None = None
        self.large = len(data) > LARGE_BYTES or (
            data.startswith(PNG_SIGNATURE)
            and len(data) >= 24
            and int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big") > LARGE_PIXELS
        )

    @property
    def traits(self) -> Traits:
        assert self.decoded is not None, "pixels() comes first"
        return self.decoded.traits

    def pixels(self, size: int) -> NDArray[np.uint8]:
        assert self._data is not None, "pixels() is called once"
        try:
            self.decoded = decode(self._data, size, self._limits)
        except (ImageError, UnsupportedMedia) as error:
            error.at(self._index)
            raise
        finally:
            self._data = None  # the file is of no use any more, and it may be megabytes
        return self.decoded.pixels


def sniff(data: bytes) -> Format:
    """The format by its first bytes. Raises UnsupportedMedia for everything but PNG, JPEG and WebP."""
    if data.startswith(PNG_SIGNATURE):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise UnsupportedMedia("the image is none of PNG, JPEG, WebP")


def decode(data: bytes, size: int, limits: Limits) -> DecodedImage:
    """An encoded image as the network sees it, [3, size, size].

    Raises:
        UnsupportedMedia: another format.
        ImageTooLarge, ImageTooSmall: outside `limits`, found before any pixel is decoded.
        AnimatedImage: more than one frame.
        ImageError: truncated, corrupt, or holding a bomb in its metadata.
    """
    kind = sniff(data)
    if kind == "PNG":
        check_png(data)
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            stored = image.size
            _check_size(stored, limits)
            # A JPEG of several images (MPO) is one photograph and its previews; the others are animations.
            if kind != "JPEG" and getattr(image, "is_animated", False):
                raise AnimatedImage("the image has more than one frame")
            if kind == "JPEG":
                image.draft(None, (DRAFT_GAP * size, DRAFT_GAP * size))
            image.load()
            few_colours = _FEW_COLOURS.get(image.mode)
            orientation = _orientation(image)
            upright = image if orientation == 1 else ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLarge(f"the image has more than {limits.max_pixels} pixels") from None
    except _DECODE_ERRORS as error:
        raise ImageError(f"the {kind} image is truncated or corrupt") from error
    rgb = _opaque_rgb(upright)
    width, height = stored[::-1] if orientation in _QUARTER_TURNS else stored
    resized = (width, height) != (size, size)
    if resized:
        rgb = _centre_square(rgb, size)
    # A copy in the layout of the network: one image is small, and Pillow's memory is freed at once.
    pixels = np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))
    altered: Altered | None = None
    if resized:
        altered = "resized"
    elif kind == "JPEG" or (kind == "WEBP" and not _is_lossless_webp(data)):
        altered = "lossy"
    return DecodedImage(pixels, kind, width, height, resized, Traits(measure(pixels), few_colours, altered))


def check_png(data: bytes) -> None:
    """Walk the chunks of a PNG: lengths, checksums, the end marker, one frame.

    Pillow skips the checksum of pixel data and does not miss the end of a file that was cut there.

    Raises:
        ImageError: cut, corrupt, or made of more than MAX_PNG_CHUNKS chunks.
        AnimatedImage: an APNG.
    """
    at, end = len(PNG_SIGNATURE), len(data)
    view = memoryview(data)
    for _ in range(MAX_PNG_CHUNKS):
        if at + 12 > end:
            break
        length = int.from_bytes(view[at : at + 4], "big")
        after = at + 12 + length
        if after > end:
            break
        if zlib.crc32(view[at + 4 : after - 4]) != int.from_bytes(view[after - 4 : after], "big"):
            raise ImageError("the PNG image is corrupt: a checksum does not match")
        name = data[at + 4 : at + 8]
        if name == b"IEND":
            return
        if name == b"acTL":
            raise AnimatedImage("the image is animated")
        at = after
    else:
        raise ImageError(f"the PNG image has more than {MAX_PNG_CHUNKS} chunks")
    raise ImageError("the PNG image is truncated")


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageTooLarge(f"the image has {width} x {height} pixels; at most {limits.max_pixels} are accepted")
    if min(size) < limits.min_side:
        raise ImageTooSmall(f"the image has {width} x {height} pixels; at least {limits.min_side} a side are needed")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; the common image without EXIF is not searched."""
    if "exif" not in image.info and "Raw profile type exif" not in image.info and "xmp" not in image.info:
        return 1
    orientation = image.getexif().get(_ORIENTATION, 1)
    return orientation if orientation in range(2, 9) else 1


def _opaque_rgb(image: Image.Image) -> Image.Image:
    """Any of the modes that the three readers give, as RGB; transparency is laid over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # convert("RGB") would clip 16-bit grey at 255; the high byte is what 16-bit colour gets as well.
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    """The centre square of the short side, scaled to `size`; antialiased, because Pillow widens the filter.

    One step in place of scaling and then cropping: a ribbon of 60,000 x 8 pixels never becomes a large image.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def _is_lossless_webp(data: bytes) -> bool:
    """Whether the pixels of a still WebP lie in a VP8L chunk."""
    at = 12
    for _ in range(64):
        name = data[at : at + 4]
        if name in (b"VP8L", b"VP8 ", b""):
            return name == b"VP8L"
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + (length & 1)
    return False
