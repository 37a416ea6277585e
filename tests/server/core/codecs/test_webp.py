"""WebP files: the container is checked, a lone frame is an image, and cost is known from headers."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.harness.image_files import riff, webp_chunk
from server.core.codecs.decode import read
from server.core.codecs.webp import MAX_CHUNKS
from server.core.images import Limits
from server.core.images import decode as seen
from server.errors import AnimatedImage, ImageError, ImageTooLarge
from tests.server.tiny import SIZE, encoded, noise

STILL = encoded(noise(), "WEBP", lossless=True)
PIXELS = STILL[20:]  # of VP8L


def pixels(data: bytes) -> np.ndarray:
    """[3,S,S] of an image that is accepted."""
    return seen(data, SIZE, Limits()).pixels


def canvas(width: int, height: int, flags: int = 0) -> bytes:
    return webp_chunk(
        b"VP8X", bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )


def frame(data: bytes, kind: bytes = b"VP8L") -> bytes:
    """A frame of the image's own size at the left upper corner."""
    side = (SIZE - 1).to_bytes(3, "little")
    return webp_chunk(b"ANMF", bytes(6) + side + side + bytes(4) + webp_chunk(kind, data))


LEN = int.from_bytes(STILL[16:20], "little")
VP8L = webp_chunk(b"VP8L", STILL[20 : 20 + LEN])
ANIM = webp_chunk(b"ANIM", bytes(6))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (riff(), "no pixels"),
        (riff(canvas(SIZE, SIZE)), "no pixels"),
        (riff(webp_chunk(b"EXIF", b""), VP8L), "begin"),
        (riff(canvas(4000, 4000), VP8L), "different sizes"),
        (riff(canvas(SIZE, SIZE), VP8L, VP8L), "several"),
        (riff(canvas(SIZE, SIZE), *([webp_chunk(b"junk", b"")] * (MAX_CHUNKS + 1)), VP8L), "chunks"),
        (riff(webp_chunk(b"VP8L", b"\x2f")), "no header"),
        (riff(webp_chunk(b"VP8 ", bytes(20))), "no header"),
        (riff(webp_chunk(b"VP8L", STILL[20 : 20 + LEN // 2])), "truncated or corrupt"),
        (STILL[:-1], "truncated"),
        (riff(canvas(SIZE, SIZE, 2), ANIM, webp_chunk(b"ANMF", bytes(16))), "frame"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_webp_that_is_not_one_is_refused(data: bytes, why: str) -> None:
    """Before a canvas is made where that can be known."""
    with pytest.raises(ImageError, match=why):
        pixels(data)


def test_an_animation_of_one_frame_is_an_image() -> None:
    """Its pixels are those of the frame; two frames are two images."""
    np.testing.assert_array_equal(
        pixels(riff(canvas(SIZE, SIZE, 2), ANIM, frame(STILL[20 : 20 + LEN]))), np.asarray(noise()).transpose(2, 0, 1)
    )
    with pytest.raises(AnimatedImage):
        pixels(riff(canvas(SIZE, SIZE, 2), ANIM, *[frame(STILL[20 : 20 + LEN])] * 2))


def test_the_size_is_read_from_all_three_headers() -> None:
    """Before the image is queued."""
    large = io.BytesIO()
    Image.new("RGBA", (4100, 4000)).save(large, "WEBP", lossless=True)
    for data in (large.getvalue(), encoded(noise(4100, 4000).convert("L"), "WEBP", quality=1, method=0)):
        file = read(data)
        assert (file.width, file.height) == (4100, 4000)
        with pytest.raises(ImageTooLarge):
            pixels(data)


def test_lossless_data_counts_as_code_tables() -> None:
    """A third of a megabyte of them holds a decoder for half a second; so few bytes of coefficients do not."""
    lossless, lossy = encoded(noise(500, 500), "WEBP", lossless=True), encoded(noise(500, 500), "WEBP", quality=90)
    assert read(lossless).cost(SIZE) > 5_000_000 > read(lossy).cost(SIZE)
    assert read(STILL).cost(SIZE) < 500_000
