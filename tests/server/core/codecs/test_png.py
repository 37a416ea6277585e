"""PNG files: what is refused before a decoder sees them, and that the pixels are right where none is."""

from __future__ import annotations

import time
import zlib

import numpy as np
import pytest

from benchmarks.harness.image_files import SIGNATURE, chunk, header, png, rows_of
from server.core.codecs.decode import decode, read
from server.core.images import Limits
from server.core.images import decode as seen
from server.errors import AnimatedImage, ImageError, ImageTooLarge
from tests.server.tiny import SIZE, encoded, noise

BLACK = (b"\0" + bytes(3 * SIZE)) * SIZE
INDEXED = (b"\0" + bytes(SIZE)) * SIZE


def pixels(data: bytes) -> np.ndarray:
    """[3,S,S] of an image that is accepted."""
    return seen(data, SIZE, Limits()).pixels


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (png(SIZE, SIZE, 8, 2, BLACK[: 3 * SIZE + 1]), "truncated"),
        (png(SIZE, SIZE, 8, 2, BLACK[:-1]), "truncated"),
        (png(4000, 4000, 8, 6, b"\0" + bytes(16000)), "cannot fill"),
        (png(SIZE, SIZE, 1, 0, b"", interlaced=1), "truncated"),
        (png(SIZE, SIZE, 8, 3, INDEXED), "no palette"),
        (png(SIZE, SIZE, 8, 3, INDEXED, chunk(b"PLTE", b"")), "palette"),
        (png(SIZE, SIZE, 8, 3, INDEXED, chunk(b"PLTE", bytes(5))), "palette"),
        (png(SIZE, SIZE, 8, 3, INDEXED, chunk(b"PLTE", bytes(771))), "palette"),
        (png(SIZE, SIZE, 2, 3, (b"\0" + bytes(8)) * SIZE, chunk(b"PLTE", bytes(15))), "more colours"),
        (png(SIZE, SIZE, 8, 3, (b"\0" + b"\2" * SIZE) * SIZE, chunk(b"PLTE", bytes(6))), "not in its palette"),
        (png(SIZE, SIZE, 8, 0, INDEXED, chunk(b"PLTE", bytes(6))), "palette"),
        (png(SIZE, SIZE, 8, 2, BLACK, chunk(b"PLTE", bytes(3)), chunk(b"PLTE", bytes(3))), "twice"),
        (png(SIZE, SIZE, 8, 2, BLACK, header(SIZE, SIZE, 8, 2)), "twice"),
        (SIGNATURE + chunk(b"gAMA", bytes(4)) + png(SIZE, SIZE, 8, 2, BLACK)[8:], "begin"),
        (png(SIZE, SIZE, 8, 2, BLACK, chunk(b"CgBI", bytes(4))), "critical"),
        (png(SIZE, SIZE, 8, 2, BLACK, chunk(b"a\0bc", bytes(4))), "proper name"),
        (png(SIZE, SIZE, 8, 3, INDEXED, chunk(b"PLTE", bytes(3)), chunk(b"tRNS", bytes(2))), "transparency"),
        (png(SIZE, SIZE, 8, 3, INDEXED, chunk(b"tRNS", bytes(1)), chunk(b"PLTE", bytes(3))), "transparency"),
        (png(SIZE, SIZE, 8, 2, BLACK, chunk(b"tRNS", bytes(2))), "transparency"),
        (png(SIZE, SIZE, 8, 0, INDEXED, chunk(b"tRNS", bytes(6))), "transparency"),
        (png(SIZE, SIZE, 8, 6, (b"\0" + bytes(4 * SIZE)) * SIZE, chunk(b"tRNS", bytes(6))), "transparency"),
        (png(SIZE, SIZE, 3, 2, BLACK), "does not know"),
        (png(SIZE, SIZE, 8, 5, BLACK), "does not know"),
        (png(SIZE, SIZE, 8, 2, BLACK, interlaced=2), "does not know"),
        (SIGNATURE + chunk(b"IHDR", bytes(12)) + chunk(b"IEND", b""), "length"),
        (SIGNATURE + header(SIZE, SIZE, 8, 2) + chunk(b"IEND", b""), "no pixel data"),
        (png(SIZE, SIZE, 8, 2, (b"\5" + bytes(3 * SIZE)) * SIZE), "corrupt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_png_that_is_not_one_is_refused(data: bytes, why: str) -> None:
    """None of them is an image with black rows, and none a fault of the server."""
    with pytest.raises(ImageError, match=why):
        pixels(data)


def test_pixel_data_is_in_one_piece() -> None:
    """Chunks of another kind do not stand within it."""
    data = zlib.compress(BLACK)
    whole = SIGNATURE + header(SIZE, SIZE, 8, 2)
    parts = [chunk(b"IDAT", data[:10]), chunk(b"IDAT", data[10:])]
    end = chunk(b"IEND", b"")
    assert not pixels(whole + parts[0] + parts[1] + end).any()
    with pytest.raises(ImageError, match="within"):
        pixels(whole + parts[0] + chunk(b"teXt", b"") + parts[1] + end)


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("missing", [1, 50, 2000])
def test_a_stream_that_ends_early_is_noticed_whatever_its_pixels_are(interlaced: int, missing: int) -> None:
    """The decoder says nothing: also where what is missing would have looked like what was there before."""
    for height in (SIZE, SIZE - 1):
        for colour in ((93, 141, 59), (0, 0, 0)):
            file = read(png(SIZE, height, 8, 2, bytes(1 << 15), interlaced=interlaced))
            needed = sum(file._rows())  # type: ignore[attr-defined]
            row = b"\0" + bytes(colour) * SIZE
            rows = (row * (needed // len(row) + 1))[:needed] if not interlaced else bytes(needed)
            assert seen(png(SIZE, height, 8, 2, rows, interlaced=interlaced), SIZE, Limits()).pixels.shape
            with pytest.raises(ImageError, match="truncated"):
                pixels(png(SIZE, height, 8, 2, rows[:-missing], interlaced=interlaced))


def test_bytes_behind_the_last_row_do_not_matter() -> None:
    """Encoders pad; what is unpacked is bounded by the rows."""
    assert not pixels(png(SIZE, SIZE, 8, 2, BLACK + bytes(10 << 20))).any()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_compared_at_its_depth(depth: int) -> None:
    """The key is a sample as it is stored, and only its low bits count; all else stays what it is."""
    levels = np.random.default_rng(depth).integers(0, 1 << depth, (SIZE, SIZE))
    key = int(levels[3, 5])
    if depth == 16:
        levels[0, :2] = key ^ 1, key ^ 256  # differ in one byte
    got = pixels(png(SIZE, SIZE, depth, 0, rows_of(levels, depth), chunk(b"tRNS", key.to_bytes(2, "big"))))
    grey = levels >> 8 if depth == 16 else levels * 255 // ((1 << depth) - 1)
    np.testing.assert_array_equal(got, np.repeat(np.where(levels == key, 255, grey)[None], 3, 0))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_compared_in_all_its_bits(depth: int) -> None:
    """Colours that share all high bytes, or all low bytes, or two samples with the key are not it."""
    top = (1 << depth) - 1
    samples = np.random.default_rng(depth).integers(0, top + 1, (SIZE, SIZE, 3))
    key = samples[7, 7].copy()
    for column, change in enumerate([(1, 0, 0), (0, 0, 1), (0, top // 2 + 1, 0), (0, 0, 0)]):
        samples[0, column] = key ^ np.array(change)
    rows = rows_of(samples.reshape(SIZE, -1), depth)
    got = pixels(png(SIZE, SIZE, depth, 2, rows, chunk(b"tRNS", key.astype(">u2").tobytes())))
    expected = np.where((samples == key).all(-1, keepdims=True), 255, samples >> (depth - 8)).transpose(2, 0, 1)
    np.testing.assert_array_equal(got, expected)
    assert (got[:, 0, 3] == 255).all() and (got[:, 7, 7] == 255).all()


def test_an_animation_of_one_frame_is_an_image() -> None:
    """Its frame is the image itself; a frame beside the image is another one."""
    control = chunk(b"fcTL", (0).to_bytes(4, "big") + SIZE.to_bytes(4, "big") * 2 + bytes(14))
    one = chunk(b"acTL", b"\0\0\0\1\0\0\0\0")
    assert not pixels(png(SIZE, SIZE, 8, 2, BLACK, one, control)).any()
    for wrong in ((one,), (chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), control), (chunk(b"acTL", b""), control)):
        with pytest.raises(AnimatedImage):
            pixels(png(SIZE, SIZE, 8, 2, BLACK, *wrong))


@pytest.mark.slow
def test_a_limit_above_the_decoders_own_holds() -> None:
    """Pillow would warn at 89 and stop at 179 megapixels, whatever our setting says."""
    data = png(15000, 12000, 1, 0, (b"\0" + bytes(1875)) * 12000)
    with pytest.raises(ImageTooLarge):
        seen(data, SIZE, Limits(max_pixels=179_999_999))
    assert not seen(data, SIZE, Limits(max_pixels=180_000_000)).pixels.any()


def test_cost_is_known_before_anything_is_decoded() -> None:
    """By pixels, their kind, and bytes."""
    small = read(encoded(noise())).cost(SIZE)
    assert small < 100_000
    assert read(png(4000, 4000, 8, 6, b"")).cost(SIZE) > 16_000_000
    assert read(encoded(noise()) + bytes(100)).cost(SIZE) == small
    keyed = png(400, 400, 16, 2, b"", chunk(b"tRNS", bytes(6)))
    assert (
        read(keyed).cost(SIZE) > read(png(400, 400, 16, 2, b"")).cost(SIZE) > read(png(400, 400, 8, 2, b"")).cost(SIZE)
    )


def test_a_files_metadata_is_not_parsed_by_a_decoder() -> None:
    """Text in three forms, EXIF with a hundred thousand entries: none of it costs anything."""
    entries = b"II*\0\x08\0\0\0" + (65535).to_bytes(2, "little") + (b"\x00\x01\x02\x00" + bytes(8)) * 65535
    more = [chunk(b"eXIf", entries), chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50 << 20), 9))] * 3
    file = read(png(SIZE, SIZE, 8, 2, BLACK, *more))
    assert file.orientation == 1
    assert decode(file, SIZE).rgb == bytes(3 * SIZE * SIZE)


@pytest.mark.parametrize("more", [b"", chunk(b"tRNS", b"\0\1")], ids=["plain", "one level transparent"])
def test_16_bit_grey_takes_about_as_long_as_8_bit(more: bytes) -> None:
    """CPU time of the fastest of ten: a table of all 65,536 levels for each image took thirty times as long."""

    def taken(depth: int) -> float:
        file, times = png(8, 8, depth, 0, bytes(8 * (1 + 8 * depth // 8)), more), []
        for _ in range(10):
            begun = time.thread_time()
            decode(read(file), SIZE)
            times.append(time.thread_time() - begun)
        return min(times)

    assert taken(16) < 5 * taken(8)
