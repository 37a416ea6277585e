"""Colour profiles: converted to sRGB, left alone where they are sRGB, and said where they cannot be read."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from benchmarks.harness.image_files import chunk, png, rows_of
from server.core.codecs.decode import read
from server.core.codecs.file import MAX_PROFILE_BYTES, PROFILE_COST
from server.core.images import DecodedImage, Limits
from server.core.images import decode as seen
from tests.server.tiny import SIZE, encoded, noise

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """sRGB with the primaries of red and blue exchanged: its red is our blue."""
    profile = bytearray(SRGB)
    tags = {}
    for place in range(132, 132 + 12 * struct.unpack_from(">I", profile, 128)[0], 12):
        tags[bytes(profile[place : place + 4])] = place
    for name, other in ((b"rXYZ", b"bXYZ"),):
        first, second = tags[name], tags[other]
        profile[first + 4 : first + 12], profile[second + 4 : second + 12] = (
            profile[second + 4 : second + 12],
            profile[first + 4 : first + 12],
        )
    return bytes(profile)


def got(data: bytes) -> DecodedImage:
    return seen(data, SIZE, Limits())


def chw(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100})])
def test_an_embedded_profile_is_converted_to_srgb(kind: str, options: dict[str, object]) -> None:
    """A red and blue exchanged by the profile are exchanged in the pixels; nothing else changes much."""
    image = noise().resize((16, 16)).resize((SIZE, SIZE))
    with_it = got(encoded(image, kind, icc_profile=swapped(), **options))
    assert with_it.traits.unusual is None
    difference = with_it.pixels.astype(int) - got(encoded(image, kind, **options)).pixels[::-1]
    assert np.abs(difference).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_pixels_in_srgb_are_left_bit_for_bit(kind: str) -> None:
    """A profile that says what is assumed anyway changes nothing, not by rounding either."""
    options = {"lossless": True} if kind == "WEBP" else {}
    with_it, without = (got(encoded(noise(), kind, icc_profile=p, **options)) for p in (SRGB, None))
    np.testing.assert_array_equal(with_it.pixels, without.pixels)
    assert with_it.traits.unusual is None


def test_a_grey_image_with_a_profile_for_colours_is_converted_as_colours() -> None:
    """Greys stay greys where only primaries are exchanged."""
    image = noise().convert("L")
    pixels = got(encoded(image, "PNG", icc_profile=swapped())).pixels.astype(int)
    assert np.abs(pixels - np.asarray(image)).max() <= 3


def icc(data: bytes) -> bytes:
    return chunk(b"iCCP", b"p\0\0" + zlib.compress(data, 9))


@pytest.mark.parametrize(
    "more",
    [
        icc(b"nonsense"),
        icc(SRGB[:-100]),
        icc(SRGB[:16] + b"CMYK" + SRGB[20:]),
        icc(bytes(MAX_PROFILE_BYTES + 1)),
        icc(bytes(256 << 20)),
        chunk(b"iCCP", b"p\0\0" + b"no zlib"),
        chunk(b"iCCP", b""),
        chunk(b"gAMA", (100000).to_bytes(4, "big")),
        chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 15000, 6000, 30000, 60000, 64000, 33000)),
        chunk(b"cICP", b"\x09\x10\0\1"),
    ],
)
def test_colours_that_cannot_be_converted_are_said_to_be_uncalibrated(more: bytes) -> None:
    """An answer is given, and no threshold speaks for it."""
    image = noise()
    data = png(SIZE, SIZE, 8, 2, rows_of(np.asarray(image).reshape(SIZE, -1), 8), more)
    result = got(data)
    assert result.traits.unusual == "colour profile"
    np.testing.assert_array_equal(result.pixels, chw(image))


@pytest.mark.parametrize(
    "more",
    [
        chunk(b"sRGB", b"\0") + chunk(b"gAMA", bytes(4)),
        chunk(b"gAMA", (45455).to_bytes(4, "big")),
        chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
        chunk(b"cICP", b"\1\x0d\0\1"),
    ],
)
def test_colours_that_are_said_to_be_srgb_are(more: bytes) -> None:
    """The usual values of older tools among them."""
    rows = rows_of(np.asarray(noise()).reshape(SIZE, -1), 8)
    assert got(png(SIZE, SIZE, 8, 2, rows, more)).traits.unusual is None


def test_a_profile_is_part_of_the_cost() -> None:
    """Making a transform of one takes longer than decoding a small image."""
    assert read(encoded(noise(), icc_profile=SRGB)).cost(SIZE) >= PROFILE_COST
