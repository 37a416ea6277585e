"""What the network sees of a file, and what is refused before any pixel is decoded."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from domain.statistics import measure
from server.core.codecs.png import MAX_CHUNKS as MAX_PNG_CHUNKS
from server.core.codecs.png import SIGNATURE as PNG_SIGNATURE
from server.core.images import DecodedImage, EncodedImage, Limits, PixelArray, Traits, decode
from server.errors import AnimatedImage, ImageError, ImageTooLarge, ImageTooSmall, RequestError, UnsupportedMedia
from tests.server.tiny import SIZE, encoded, noise

LIMITS = Limits(max_pixels=1_000_000, min_side=8)


def seen(data: bytes) -> DecodedImage:
    return decode(data, SIZE, LIMITS)


def chw(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *, rows: bytes | None = None, extra: bytes = b"", colour: int = 2) -> bytes:
    """A PNG written by hand, 8 bits a sample; `rows` are unfiltered, black where left out."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    rows = bytes((3 * width + 1) * height) if rows is None else rows
    return PNG_SIGNATURE + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_image_of_the_right_size_arrives_bit_for_bit(kind: str, options: dict[str, bool]) -> None:
    """Thresholds are calibrated for exactly these pixels, in the order channel, row, column."""
    image = noise()
    got = seen(encoded(image, kind, **options))
    assert got.pixels.dtype == np.uint8
    np.testing.assert_array_equal(got.pixels, chw(image))
    assert (got.format, got.width, got.height, got.resized) == (kind, SIZE, SIZE, False)
    assert got.traits == Traits(measure(got.pixels))


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 90})])
def test_a_lossy_image_is_known_as_one(kind: str, options: dict[str, int]) -> None:
    """The codec changed the pixels; thresholds of pristine images do not speak for it."""
    got = seen(encoded(noise(), kind, **options))
    assert got.traits.altered == "lossy"
    assert not got.resized


@pytest.mark.parametrize(
    ("image", "few_colours"),
    [
        (noise().quantize(256), "colour palette"),
        (noise().quantize(16), "colour palette"),
        (noise().convert("L").convert("1"), "1-bit image"),
        (noise().convert("L"), None),
        (noise().convert("RGBA"), None),
        (noise().quantize(16).convert("RGB"), None),  # which its pixels show
    ],
)
def test_modes_of_few_colours_are_known_from_the_file(image: Image.Image, few_colours: str | None) -> None:
    """Whatever becomes of the pixels: scaling gives a palette image as many colours as any."""
    for size in (SIZE, 2 * SIZE):
        got = seen(encoded(image.resize((size, size))))
        assert got.traits.unusual == few_colours
        assert got.traits.altered == (None if size == SIZE else "resized")


def test_statistics_are_those_of_the_pixels_that_the_model_sees() -> None:
    """After scaling, turning and flattening; tensors are measured like files."""
    for content in (encoded(noise(90, 60)), encoded(noise(), "JPEG"), encoded(noise().convert("RGBA").rotate(20))):
        got = seen(content)
        assert got.traits.statistics == measure(got.pixels)
        image = PixelArray(got.pixels)
        image.pixels(SIZE)
        assert image.traits == Traits(measure(got.pixels))


def test_a_lossless_webp_with_metadata_is_still_lossless() -> None:
    """Metadata moves the pixels into an extended file; its chunks are searched."""
    exif = Image.Exif()
    exif[0x010E] = "described"
    assert seen(encoded(noise(), "WEBP", lossless=True, exif=exif)).traits.altered is None
    assert seen(encoded(noise(), "WEBP", quality=80, exif=exif)).traits.altered == "lossy"


@pytest.mark.parametrize(("width", "height"), [(64, 64), (100, 60), (60, 101), (33, 32), (16, 16), (20, 90)])
def test_another_size_is_scaled_by_the_short_side_and_cropped_in_the_centre(width: int, height: int) -> None:
    """One step here must give what scaling first and cropping then gives, up to rounding."""
    ramp_x, ramp_y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([ramp_x, ramp_y, (ramp_x + ramp_y) / 2], 2).astype(np.uint8))
    got = seen(encoded(image))
    factor = SIZE / min(width, height)
    scaled = image.resize((round(width * factor), round(height * factor)), Image.Resampling.BILINEAR)
    left, top = (scaled.width - SIZE) // 2, (scaled.height - SIZE) // 2
    expected = chw(scaled.crop((left, top, left + SIZE, top + SIZE))).astype(int)
    assert got.resized
    assert got.traits.altered == "resized"
    assert (got.width, got.height) == (width, height)
    # Half a pixel of the crop's rounding is up to 255 / 16 / 2 on the steepest ramp here.
    assert np.abs(got.pixels.astype(int) - expected).max() <= 8
    assert np.abs(got.pixels.astype(int) - expected).mean() <= 4


def test_scaling_down_is_antialiased() -> None:
    """A fine chequerboard turns grey; without antialiasing it would turn into stripes of black and white."""
    board = (np.indices((320, 320)).sum(0) % 2 * 255).astype(np.uint8)
    got = seen(encoded(Image.fromarray(board).convert("RGB")))
    assert np.abs(got.pixels.astype(int) - 127).max() <= 4


def test_a_large_jpeg_read_at_a_fraction_looks_like_the_whole() -> None:
    """The decoder may skip detail that the filter would average away anyway."""
    ramp = np.linspace(0, 255, 800, dtype=np.uint8)
    image = Image.fromarray(
        np.stack([np.tile(ramp, (800, 1)), np.tile(ramp, (800, 1)).T, np.full((800, 800), 90)], 2).astype(np.uint8)
    )
    got = seen(encoded(image, "JPEG", quality=95))
    expected = chw(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)).astype(int)
    assert (got.width, got.height) == (800, 800)
    assert np.abs(got.pixels.astype(int) - expected).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_honoured(kind: str, orientation: int) -> None:
    """A phone's image is judged as its owner sees it."""
    image = Image.new("RGB", (32, 32), "black")
    image.paste("red", (0, 0, 16, 16))
    image.paste("blue", (16, 16, 32, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif, **({} if kind == "PNG" else {"quality": 95}))
    with Image.open(io.BytesIO(data)) as opened:
        expected = chw(ImageOps.exif_transpose(opened.convert("RGB")) or opened)
    np.testing.assert_array_equal(seen(data).pixels, expected)


def test_a_turned_image_is_reported_as_a_viewer_shows_it() -> None:
    """Width and height are those of the upright image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    got = seen(encoded(noise(40, 60), "JPEG", exif=exif))
    assert (got.width, got.height) == (60, 40)


def test_an_almost_square_photograph_keeps_its_sides() -> None:
    """Read at an eighth, 1001 x 1002 is as wide as high; the report is about the file."""
    got = decode(encoded(noise(1001, 1002), "JPEG"), SIZE, Limits())
    assert (got.width, got.height) == (1001, 1002)


def test_sixteen_bit_grey_keeps_its_tones() -> None:
    """Pillow's own conversion clips it to almost white."""
    values = (np.arange(SIZE * SIZE, dtype=np.uint16) * 64).reshape(SIZE, SIZE)
    got = seen(encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(got.pixels, np.repeat((values >> 8).astype(np.uint8)[None], 3, 0))


def test_sixteen_bit_colour_keeps_its_tones() -> None:
    """The high byte of each sample."""
    values = np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE, 3), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(seen(data).pixels, (values >> 8).astype(np.uint8).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_images_become_rgb(mode: str) -> None:
    """The pixels are those of Pillow's exact conversion."""
    image = noise().convert(mode)
    np.testing.assert_array_equal(seen(encoded(image)).pixels, chw(image.convert("RGB")))


def test_transparency_is_laid_over_white() -> None:
    """Colours under fully transparent pixels are not what anybody sees."""
    pixels = np.zeros((SIZE, SIZE, 4), np.uint8)
    pixels[:16] = (200, 0, 0, 0)
    pixels[16:] = (0, 0, 0, 128)
    got = seen(encoded(Image.fromarray(pixels))).pixels
    assert (got[:, :16] == 255).all()
    assert (np.abs(got[:, 16:].astype(int) - 127) <= 1).all()


@pytest.mark.parametrize("mode", ["LA", "PA", "P", "RGB"])
def test_transparency_counts_in_every_mode_that_has_it(mode: str) -> None:
    """Grey with alpha, a palette with a transparent entry, and RGB with a transparent colour."""
    if mode == "LA":
        data = encoded(Image.new("LA", (SIZE, SIZE), (10, 0)))
    elif mode == "PA":
        data = encoded(Image.new("RGBA", (SIZE, SIZE), (10, 20, 30, 0)).quantize())
    elif mode == "P":
        data = encoded(Image.new("P", (SIZE, SIZE), 0), transparency=0)
    else:
        data = encoded(Image.new("RGB", (SIZE, SIZE), (10, 20, 30)), transparency=(10, 20, 30))
    assert (seen(data).pixels == 255).all()


def test_a_cmyk_jpeg_has_the_right_colours() -> None:
    """Printers' files are inverted; a red one must not come out cyan."""
    data = encoded(Image.new("RGB", (SIZE, SIZE), (230, 20, 20)).convert("CMYK"), "JPEG", quality=95)
    red, green, blue = seen(data).pixels.mean(axis=(1, 2))
    assert red > 200
    assert green < 50
    assert blue < 50


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused_whatever_pillow_could_read(kind: str) -> None:
    """An allow-list by the first bytes."""
    with pytest.raises(UnsupportedMedia):
        seen(encoded(noise(), kind))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04zip", b"%PDF-1.7", b"<svg/>", b"%!PS", b"RIFF1234WAVE"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    """Neither by name nor by content type can it become one."""
    with pytest.raises(UnsupportedMedia):
        seen(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_truncation_is_noticed(kind: str) -> None:
    """Wherever the file is cut, no image is made up for the rest."""
    data = encoded(noise(40, 40), kind)
    for length in [*range(12, len(data) - 2, max(1, len(data) // 60)), len(data) - 2, len(data) - 1]:
        with pytest.raises(ImageError):
            seen(data[:length])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_corruption_never_raises_anything_but_our_own_errors(kind: str) -> None:
    """Whatever Pillow raises inside, the client gets an answer."""
    data = encoded(noise(40, 40), kind)
    rng = np.random.default_rng(0)
    for _ in range(400):
        spoiled = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            spoiled[at] = rng.integers(0, 256)
        if kind == "PNG":
            spoiled = bytearray(right_checksums(bytes(spoiled)))  # or every try would end there
        with contextlib.suppress(RequestError):
            assert seen(bytes(spoiled)).pixels.shape == (3, SIZE, SIZE)


def right_checksums(data: bytes) -> bytes:
    """`data` with the checksum of each chunk recomputed, as far as its lengths lead."""
    done, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        done += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return done + data[at:]


def test_a_bad_checksum_of_pixel_data_is_noticed() -> None:
    """Pillow skips it."""
    data = bytearray(encoded(noise()))
    data[data.index(b"IEND") - 5] ^= 1
    with pytest.raises(ImageError, match="checksum"):
        seen(bytes(data))


def test_too_many_chunks_are_refused_quickly() -> None:
    """Empty chunks cost the client twelve bytes each."""
    with pytest.raises(ImageError, match="chunks"):
        seen(png(SIZE, SIZE, extra=chunk(b"teXt", b"") * (MAX_PNG_CHUNKS + 1)))


def test_an_image_over_the_pixel_limit_is_refused_before_it_is_decoded() -> None:
    """The file's pixels are missing, so that decoding would have said something else."""
    with pytest.raises(ImageTooLarge):
        seen(png(1001, 1000, rows=b""))
    with pytest.raises(ImageTooLarge):
        seen(png(200_000, 200_000, rows=b""))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (65535, 1), (7, 40), (0, 0), (0, 40)])
def test_an_image_with_too_short_a_side_is_refused(width: int, height: int) -> None:
    """Nothing can be said about seven pixels blown up to thirty-two."""
    with pytest.raises(ImageError) as refused:
        seen(png(width, height))
    if width and height:
        assert isinstance(refused.value, ImageTooSmall)


def test_a_ribbon_does_not_become_a_large_image_on_the_way() -> None:
    """100,000 x 8 scaled by its short side would be 400,000 x 32."""
    assert seen(png(100_000, 8)).pixels.shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_refused(kind: str) -> None:
    """There is no telling which of its frames the verdict would be about."""
    with pytest.raises(AnimatedImage):
        seen(encoded(noise(), kind, save_all=True, append_images=[noise(seed=1)]))


def test_a_photograph_with_previews_is_one_image() -> None:
    """Phones write MPO files, a JPEG with more of them behind it."""
    data = encoded(noise(), "MPO", save_all=True, append_images=[noise(seed=1)], quality=95)
    got = seen(data)
    assert got.format == "JPEG"
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(got.pixels, chw(opened.convert("RGB")))


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_bomb_in_the_metadata_does_not_go_off(name: bytes) -> None:
    """A few kilobytes that unpack to 256 MB: either refused or never unpacked."""
    bomb = zlib.compress(bytes(256 << 20), 9)
    head = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[name]
    try:
        got = seen(png(SIZE, SIZE, extra=chunk(name, head + bomb)))
    except ImageError:
        return
    assert (got.pixels == 0).all()


def test_a_huge_text_chunk_does_not_change_the_image() -> None:
    """Unread metadata is unread."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 200_000)
    np.testing.assert_array_equal(seen(encoded(noise(), pnginfo=info)).pixels, chw(noise()))


def test_bytes_behind_the_image_are_ignored() -> None:
    """A polyglot is judged as the image that it is."""
    np.testing.assert_array_equal(seen(encoded(noise()) + b"PK\x03\x04 and more").pixels, chw(noise()))


def test_an_error_names_the_image_that_it_is_about() -> None:
    """Among several uploads the client must know which."""
    with pytest.raises(UnsupportedMedia) as refused:
        EncodedImage(b"nothing", LIMITS, 3).pixels(SIZE)
    assert refused.value.image == 3
