"""The images of a request: their limits, their pixels for the model, and what decides which thresholds speak for them.

What a file is and how its pixels are had: `codecs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from domain.statistics import measure

from ..errors import ImageError, ImageTooLarge, ImageTooSmall, UnsupportedMedia
from .codecs.decode import Decoded, read
from .codecs.decode import decode as decode_file
from .codecs.file import Format, ImageFile, Unusual

Altered = Literal["resized", "lossy"]

QUARTER_TURNS = range(5, 9)  # of EXIF orientations


@dataclass(frozen=True)
class Limits:
    """max_pixels: most pixels that an image is decoded to; min_side: smallest width or height, pixels."""

    max_pixels: int = 16_000_000
    min_side: int = 8


class Traits(NamedTuple):
    """What decides which thresholds speak for an image, see `domains.locate`.

    Attributes:
        statistics: of the pixels that the model sees, see `domain.statistics.measure`.
        unusual: what is known of the file that no threshold speaks for, whatever the pixels became afterwards.
        altered: what a filter of ours or a lossy codec did to the pixels, as far as the file says so.
    """

    statistics: Mapping[str, float]
    unusual: Unusual | None = None
    altered: Altered | None = None


class DecodedImage(NamedTuple):
    """pixels [3,S,S] uint8 RGB; width and height as a viewer would show the file.

    Attributes:
        decoded_pixels: that were decoded to make these.
    """

    pixels: NDArray[np.uint8]
    format: Format
    width: int
    height: int
    resized: bool
    decoded_pixels: int
    traits: Traits


class ImageInput(Protocol):
    """One image of a request, encoded or not.

    An engine calls `pixels` once, on one of its threads, because it may decode, for some milliseconds at most: what may
    take longer was decoded before (`decoding`). `traits` are there afterwards.
    """

    @property
    def traits(self) -> Traits: ...

    def pixels(self, size: int) -> NDArray[np.uint8]:
        """[3, size, size] uint8 RGB. Raises an `errors.RequestError`."""


class PixelArray:
    """An image that is already decoded: golden inputs, tensors. `traits`: where they are known already."""

    __slots__ = ("_pixels", "_traits")

    def __init__(self, pixels: NDArray[np.uint8], traits: Traits | None = None) -> None:
        self._pixels = pixels
        self._traits = traits

    @property
    def traits(self) -> Traits:
        assert self._traits is not None, "pixels() comes first"
        return self._traits

    @property
    def array(self) -> NDArray[np.uint8]:
        """Its pixels, of whatever shape they came in."""
        return self._pixels

    def recall(self, traits: Traits) -> None:
        """The same pixels had these traits."""
        self._traits = traits

    def pixels(self, size: int) -> NDArray[np.uint8]:
        if self._pixels.shape != (3, size, size):
            raise ImageError(f"expected pixels of shape [3, {size}, {size}]")
        if self._traits is None:
            self._traits = Traits(measure(self._pixels))
        return self._pixels


class EncodedImage:
    """An encoded image as it came in, see also `decoding.Decodable`.

    Attributes:
        index: its place in the request.
        decoded: set once `pixels` has been called, or `accept`.
    """

    __slots__ = ("_file", "_limits", "data", "decoded", "index")

    def __init__(self, data: bytes, limits: Limits, index: int = 0) -> None:
        self.data = data
        self.index = index
        self._limits = limits
        self._file: ImageFile | None = None
        self.decoded: DecodedImage | None = None

    @property
    def traits(self) -> Traits:
        assert self.decoded is not None, "pixels() comes first"
        return self.decoded.traits

    def admit(self, size: int) -> ImageFile:
        """Read its structure, once. Raises what `decode` raises before it decodes."""
        if self._file is None:
            try:
                self._file = read(self.data)
                check(self._file, size, self._limits)
            except (ImageError, UnsupportedMedia) as error:
                error.at(self.index)
                raise
        return self._file

    def accept(self, decoded: Decoded, size: int) -> None:
        """It was decoded elsewhere."""
        self.decoded = _finished(self.admit(size), decoded, size)
        self._forget()

    def recall(self, decoded: DecodedImage) -> None:
        """The same file was this when it was decoded, whose pixels nobody needs any more."""
        self.decoded = decoded
        self._forget()

    def pixels(self, size: int) -> NDArray[np.uint8]:
        if self.decoded is None:
            file = self.admit(size)
            try:
                self.decoded = _finished(file, decode_file(file, size), size)
            except ImageError as error:
                error.at(self.index)
                raise
            finally:
                self._forget()
        return self.decoded.pixels

    def _forget(self) -> None:
        self.data, self._file = b"", None  # of no use any more, and it may be megabytes


def decode(data: bytes, size: int, limits: Limits) -> DecodedImage:
    """An encoded image as the network sees it, [3, size, size].

    Raises:
        UnsupportedMedia: another format.
        ImageTooLarge, ImageTooSmall: outside `limits`, found before any pixel is decoded.
        AnimatedImage: more than one frame.
        ImageError: truncated, corrupt, or made to be slow.
    """
    file = read(data)
    check(file, size, limits)
    return _finished(file, decode_file(file, size), size)


def check(file: ImageFile, size: int, limits: Limits) -> None:
    """What is refused before it is decoded. Raises ImageTooLarge, ImageTooSmall, ImageError."""
    width, height = file.width, file.height
    pixels = file.decoded_pixels(size)
    if pixels > limits.max_pixels:
        stored = f"{width} x {height} pixels"
        held = "" if pixels == width * height else f", and {pixels} of them would have to be held"
        raise ImageTooLarge(f"the image has {stored}{held}; at most {limits.max_pixels} are accepted")
    if min(width, height) < limits.min_side:
        raise ImageTooSmall(f"the image has {width} x {height} pixels; at least {limits.min_side} a side are needed")
    if file.short:
        raise ImageError(f"the {file.format} image is truncated: its data cannot fill its rows")


def _finished(file: ImageFile, decoded: Decoded, size: int) -> DecodedImage:
    """What was decoded as an array, with its traits."""
    rgb = np.frombuffer(decoded.rgb, np.uint8).reshape(size, size, 3)
    pixels = np.ascontiguousarray(rgb.transpose(2, 0, 1))
    width, height = (file.height, file.width) if file.orientation in QUARTER_TURNS else (file.width, file.height)
    resized = (width, height) != (size, size)
    altered: Altered | None = "resized" if resized else "lossy" if file.lossy else None
    traits = Traits(measure(pixels), decoded.unusual, altered)
    return DecodedImage(pixels, file.format, width, height, resized, file.decoded_pixels(size), traits)
