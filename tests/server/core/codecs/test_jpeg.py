"""JPEG files: what is refused before a decoder sees them, and what a photograph costs."""

from __future__ import annotations

import contextlib
import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks.harness.image_files import grey_jpeg, progressive, scan, segment
from server.core.codecs.decode import decode, read
from server.core.codecs.jpeg import MAX_FILL_BYTES, MAX_SCANS, MAX_SEGMENTS, JPEGFile
from server.core.images import Limits
from server.core.images import decode as seen
from server.errors import ImageError, ImageTooLarge
from tests.server.tiny import SIZE, encoded, noise

BLOCKS = (SIZE // 8) ** 2
DATA = bytes(BLOCKS // 4)  # two bits a block
GOOD = grey_jpeg(SIZE, SIZE, scan(DATA))


def scans_apart() -> bytes:
    """A JPEG that is not progressive and has a scan for each of its three components, made of three grey ones."""
    grey = [encoded(noise(90, 70, seed).convert("L"), "JPEG", quality=80) for seed in range(3)]
    frame, first = (grey[0].index(marker) for marker in (b"\xff\xc0", b"\xff\xda"))
    header = segment(0xC0, struct.pack(">BHHB", 8, 70, 90, 3) + b"\1\x11\0\2\x11\0\3\x11\0")
    tables = grey[0][frame + 13 : first]
    scans = [
        segment(0xDA, bytes([1, name, 0, 0, 63, 0])) + one[one.index(b"\xff\xda") + 10 : -2]
        for name, one in enumerate(grey, 1)
    ]
    return grey[0][:frame] + header + tables + b"".join(scans) + b"\xff\xd9"


def pixels(data: bytes) -> np.ndarray:
    """[3,S,S] of an image that is accepted."""
    return seen(data, SIZE, Limits()).pixels


def test_a_jpeg_written_by_hand_is_accepted() -> None:
    """What the others are made of is right: mid-grey."""
    assert (pixels(GOOD) == 128).all()
    assert (pixels(progressive(SIZE, SIZE, 3)) == 128).all()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (grey_jpeg(SIZE, SIZE, scan(b"")), "cannot fill"),
        (grey_jpeg(SIZE, SIZE, scan(DATA[:-1])), "cannot fill"),
        (grey_jpeg(SIZE, SIZE), "no data"),
        (grey_jpeg(SIZE, SIZE, scan(b"", 0, 0), frame=0xC2), "cannot fill"),
        (grey_jpeg(SIZE, SIZE, scan(DATA, 1), frame=0xC2), "no data"),
        (progressive(SIZE, SIZE, MAX_SCANS), "scans"),
        (grey_jpeg(SIZE, SIZE, scan(DATA), before=segment(0xFE, b"") * (MAX_SEGMENTS + 1)), "segments"),
        (grey_jpeg(SIZE, SIZE, scan(DATA), before=b"\xff" * (MAX_FILL_BYTES + 2)), "between its segments"),
        (
            grey_jpeg(SIZE, SIZE, scan(DATA), before=segment(0xFE, b"") + b"\0" * (MAX_FILL_BYTES + 2)),
            "between its segments",
        ),
        (grey_jpeg(SIZE, SIZE, scan(DATA), before=segment(0xDD, b"\0\1")), "restart markers"),
        (grey_jpeg(SIZE, SIZE, scan(DATA + b"\xff\xd0" + DATA), before=segment(0xDD, b"\0\4")), "restart markers"),
        (grey_jpeg(SIZE, SIZE, scan(DATA), frame=0xC9), "not accepted"),
        (grey_jpeg(SIZE, SIZE, scan(DATA), frame=0xC3), "not accepted"),
        (grey_jpeg(0, SIZE, scan(DATA)), "no width"),
        (grey_jpeg(SIZE, 0, scan(DATA)), "no width"),
        (
            grey_jpeg(SIZE, SIZE, scan(DATA), before=segment(0xC0, struct.pack(">BHHB", 8, 8, 8, 1) + b"\1\x11\0")),
            "two",
        ),
        (GOOD[:-2], "truncated"),
        (GOOD[:100], "truncated"),
        (GOOD.replace(b"\xff\xda\0\x08", b"\xff\xda\0\x07"), "length"),
        (GOOD.replace(b"\xff\xda\0\x08\1\1", b"\xff\xda\0\x08\1\2"), "does not have"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_jpeg_that_is_not_one_is_refused(data: bytes, why: str) -> None:
    """No grey is made up for what is missing, and nothing that is made to be slow is begun."""
    with pytest.raises(ImageError, match=why):
        pixels(data)


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_lone_scan_that_ends_early_is_noticed(mode: str, quality: int) -> None:
    """With an end marker behind it a decoder makes up the rest; up to a few blocks at the end may still be."""
    data = encoded(noise(200, 200).convert(mode), "JPEG", quality=quality)
    assert pixels(data).shape == (3, SIZE, SIZE)
    for share in (0.2, 0.5, 0.9, 0.97):
        cut = data[: int(share * len(data))].rstrip(b"\xff") + b"\xff\xd9"
        with pytest.raises(ImageError, match="truncated"):
            pixels(cut)


@pytest.mark.parametrize("side", [130, 700])
@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_scan_of_several_that_ends_early_is_noticed(mode: str, quality: int, side: int) -> None:
    """Whichever it is, with all the others and an end marker there; up to a few blocks at its end may be made up."""
    image = noise(20, 20).resize((side, side + 9), Image.Resampling.BICUBIC).convert(mode)
    data = encoded(image, "JPEG", quality=quality, progressive=True)
    file = read(data)
    assert isinstance(file, JPEGFile)
    assert len(file._scan_ends) >= 6
    assert pixels(data).shape == (3, SIZE, SIZE)
    for end in file._scan_ends:
        start = data.rfind(b"\xff\xda", 0, end)
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if end - start < 100:  # one run over all blocks
            continue
        for share in (0.1, 0.5, 0.8):
            cut = data[: start + int(share * (end - start))].rstrip(b"\xff") + data[end:]
            with pytest.raises(ImageError, match="truncated"):
                pixels(cut)


def test_scans_of_one_component_each_are_whole_or_refused() -> None:
    """Without progression, too: such files are made by cameras and by `jpegtran -scans`."""
    data = scans_apart()
    file = read(data)
    assert isinstance(file, JPEGFile)
    assert len(file._scan_ends) == 3
    with Image.open(io.BytesIO(data)) as opened:
        assert file.image(SIZE).tobytes() == opened.tobytes()
    for end in file._scan_ends:
        with pytest.raises(ImageError, match="truncated"):
            pixels(data[: end - 200] + data[end:])


def test_nothing_whole_is_called_cut() -> None:
    """The same pixels as the plugin gives, for many sizes, qualities, samplings and restart intervals."""
    for seed in range(60):
        image = noise(33 + seed, 47, seed) if seed % 2 else noise(40, 40, seed).resize((90 + seed, 70))
        image = image.convert("L") if seed % 5 == 0 else image
        options = {"quality": 20 + seed, "subsampling": seed % 3, "progressive": seed % 4 == 3}
        restart = {"restart_marker_rows": 1} if seed % 3 == 1 else {}
        data = encoded(image, "JPEG", **options, **restart)
        file = read(data)
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft(None, (4 * SIZE, 4 * SIZE))
            assert file.image(SIZE).tobytes() == opened.tobytes()


def test_reading_is_quick_whatever_the_bytes_are() -> None:
    """A body of the largest size costs tens of milliseconds at most: stuffing, markers and fill in any number."""
    for filling in (b"\xff\x00", b"\xff\xd0", b"\xff", b"\x00", b"\xff\xda", b"\xff\xe0\x00\x02", b"\xff\xfe\x00\x02"):
        body = filling * ((8 << 20) // len(filling))
        for before in (b"\xff\xd8\xff", GOOD[:-2], GOOD[:-2].replace(b"\xff\xc0", b"\xff\xc2")):
            started = time.process_time()
            with contextlib.suppress(ImageError):
                read(before + body)
            assert time.process_time() - started < 0.5


@pytest.mark.parametrize(("width", "height"), [(6000, 4000), (8000, 6000)])
def test_a_phones_photograph_is_accepted_at_the_default_limit(width: int, height: int) -> None:
    """24 and 48 megapixels are decoded at an eighth: the limit counts what is decoded."""
    data = encoded(noise(60, 40).resize((width, height)), "JPEG", quality=80)
    file = read(data)
    assert file.decoded_pixels(SIZE) == width * height // 64
    got = seen(data, SIZE, Limits())
    assert (got.width, got.height) == (width, height)


def test_a_progressive_jpeg_counts_what_its_coefficients_take() -> None:
    """They are all held at full size, and each scan passes over them."""
    assert read(progressive(4000, 4000, 0)).decoded_pixels(SIZE) == 4000 * 4000 // 3
    assert read(progressive(4000, 4000, 60)).decoded_pixels(SIZE) > 16_000_000
    with pytest.raises(ImageTooLarge):
        pixels(progressive(4000, 4000, 60))
    with pytest.raises(ImageTooLarge):
        pixels(progressive(8000, 8000, 0))


def test_exif_with_a_hundred_thousand_entries_costs_nothing() -> None:
    """Nobody reads them; no warning reaches standard error."""
    entry = struct.pack("<HHII", 0x100, 2, 1 << 20, 8)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 5400) + entry * 5400
    data = grey_jpeg(SIZE, SIZE, scan(DATA), before=segment(0xE1, exif) * 12)
    started = time.process_time()
    assert decode(read(data), SIZE).rgb == bytes([128]) * (3 * SIZE * SIZE)
    assert time.process_time() - started < 0.05
