"""PNG (RFC 2083, W3C PNG third edition): chunks, palette and key colour checked, rows decoded by Pillow's zip decoder.

Only IHDR, PLTE, tRNS and IDAT reach a decoder. Of the other chunks, orientation and colour space are read here.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image, ImageChops

from ...errors import AnimatedImage
from .exif import orientation, xmp_orientation
from .file import MAX_PROFILE_BYTES, PROFILE_COST, Format, ImageFile, Unusual, refuse

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 4096  # a valid 8 MiB file has about a thousand; more is an attempt to keep the parser busy
MAX_INFLATION = 1032  # no deflate stream unpacks to more than this many bytes a byte
MAX_TEXT_BYTES = 64 << 10
BYTE_COST = 4  # pixels a byte of pixel data, at most: a stream may consist of Huffman tables

# (colour type, bit depth): mode and raw mode of Pillow, bits a pixel. 16-bit samples keep their high byte.
_KINDS = {
    (0, 1): ("1", "1", 1),
    (0, 2): ("L", "L;2", 2),
    (0, 4): ("L", "L;4", 4),
    (0, 8): ("L", "L", 8),
    (0, 16): ("I;16", "I;16B", 16),
    (2, 8): ("RGB", "RGB", 24),
    (2, 16): ("RGB", "RGB;16B", 48),
    (3, 1): ("P", "P;1", 1),
    (3, 2): ("P", "P;2", 2),
    (3, 4): ("P", "P;4", 4),
    (3, 8): ("P", "P", 8),
    (4, 8): ("LA", "LA", 16),
    (4, 16): ("RGBA", "LA;16B", 32),
    (6, 8): ("RGBA", "RGBA", 32),
    (6, 16): ("RGBA", "RGBA;16B", 64),
}
_CHUNK, _CHECKSUM = struct.Struct(">I4s").unpack_from, struct.Struct(">I").unpack_from
_LOW_BYTES = "RGB;16L"  # the raw mode that keeps the second byte of each 16-bit sample, which in a PNG is the low one
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_COLOUR_TYPE_PALETTE, _WITH_ALPHA = 3, (4, 6)
_BEFORE_DATA = (b"PLTE", b"tRNS", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP")
_SRGB_GAMMA, _SRGB_POINTS = 45455, (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
_SRGB_CICP = b"\x01\x0d\x00\x01"


class PNGFile(ImageFile):
    """See `file.ImageFile`."""

    format: Format = "PNG"

    def __init__(self, data: bytes) -> None:
        """Raises ImageError, AnimatedImage."""
        self._data = data
        self._chunks: dict[bytes, tuple[int, int]] = {}  # the first of each kind that is looked at: start, end
        self._pixel_data: list[tuple[int, int]] = []
        self._profiled = False
        self._walk()
        self._header()
        self._palette_and_key()
        self._frames()
        self.short = sum(end - start for start, end in self._pixel_data) * MAX_INFLATION < sum(self._rows())
        self.orientation = self._orientation()
        self._colour_space()

    @property
    def lossy(self) -> bool:
        return False

    def cost(self, size: int) -> int:
        compressed = sum(end - start for start, end in self._pixel_data)
        deep = self._depth == 16
        pixel = (6 if deep else 3) if self._see_through else (3 if deep else 2 if self._bits == 24 else 1)
        work = pixel * self.width * self.height + BYTE_COST * compressed
        return work + (PROFILE_COST if self._profiled else 0)

    def profile(self) -> bytes | None:
        if not self._profiled:
            return None
        chunk = self._chunk(b"iCCP")
        name, end, rest = chunk[:80].partition(b"\0")
        if not end or rest[:1] != b"\0":
            return b""
        try:
            unpacking = zlib.decompressobj()
            unpacked = unpacking.decompress(chunk[len(name) + 2 :], MAX_PROFILE_BYTES)
        except zlib.error:
            return b""
        return unpacked if unpacking.eof else b""

    def image(self, size: int) -> Image.Image:
        mode, raw, _ = self._kind
        data = b"".join([self._data[start:end] for start, end in self._pixel_data])
        image = self._rows_of(data, mode, raw)
        if mode == "P":
            palette = self._chunk(b"PLTE")
            if int(image.getextrema()[1]) >= len(palette) // 3:  # type: ignore[arg-type]
                raise refuse("PNG", "has pixels that are not in its palette")
            image.putpalette(palette)
            if b"tRNS" in self._chunks:
                image.info["transparency"] = self._chunk(b"tRNS")
        elif b"tRNS" in self._chunks:
            image = self._keyed(image, data)
        elif mode == "I;16":
            image = _high_bytes(image)
        return image

    def _rows_of(self, data: bytes, mode: str, raw: str) -> Image.Image:
        """The rows of `data`. Raises ImageError where there are fewer than the header says."""
        # The decoder leaves out silently what a stream that ends too early does not fill. It fills whole rows, so the
        # last one of the last pass tells, unless it is the colour that was there before.
        image = Image.new(mode, (self.width, self.height), _BEFORE[mode])
        image.frombytes(data, "zip", (raw, self._interlaced))
        last = (self.height - 1) // 2 * 2 - 1 if self._interlaced and self.height % 2 else self.height - 1
        if last >= 0 and image.getpixel((0, last)) != _BEFORE[mode]:
            return image
        row = image.crop((0, last, self.width, last + 1)) if last >= 0 else image
        if last < 0 or row.tobytes() == Image.new(mode, row.size, _BEFORE[mode]).tobytes():
            _check_filled(data, sum(self._rows()))
        return image

    def _keyed(self, image: Image.Image, data: bytes) -> Image.Image:
        """The pixels, with those of the key colour white: they are transparent, and transparency lies over white."""
        samples = struct.unpack(f">{len(self._chunk(b'tRNS')) // 2}H", self._chunk(b"tRNS"))
        depth = self._depth
        key = [sample & ((1 << depth) - 1) for sample in samples]  # as libpng: the low bits are what counts
        if depth == 16 and image.mode == "I;16":
            return _high_bytes(image, white=key[0])
        if image.mode in ("1", "L"):
            table = list(range(256))
            table[key[0] * 255 // ((1 << depth) - 1)] = 255
            return image.convert("L").point(table)
        bytes_of = [(image, [sample >> 8 for sample in key] if depth == 16 else key)]
        if depth == 16:
            bytes_of.append((self._rows_of(data, "RGB", _LOW_BYTES), [sample & 255 for sample in key]))
        mask = None
        for decoded, wanted in bytes_of:
            for band, value in zip(decoded.split(), wanted, strict=True):
                equal = band.point([255 if level == value else 0 for level in range(256)])
                mask = equal if mask is None else ImageChops.darker(mask, equal)
        image.paste((255, 255, 255), mask=mask)
        return image

    def _walk(self) -> None:
        """Lengths, checksums, names and order of the chunks, up to the end marker.

        Raises ImageError: cut, corrupt, or made of more than MAX_CHUNKS chunks.
        """
        data, at, end = self._data, len(SIGNATURE), len(self._data)
        view = memoryview(data)
        previous = b""
        for _ in range(MAX_CHUNKS):
            if at + 12 > end:
                break
            length, name = _CHUNK(data, at)
            after = at + 12 + length
            if after > end:
                break
            if zlib.crc32(view[at + 4 : after - 4]) != _CHECKSUM(data, after - 4)[0]:
                raise refuse("PNG", "is corrupt: a checksum does not match")
            where = (at + 8, after - 4)
            if name == b"IDAT":
                if self._pixel_data and previous != name:
                    raise refuse("PNG", "is corrupt: other chunks stand within its pixel data")
                self._pixel_data.append(where)
            elif name == b"IEND":
                return
            elif not name.isalpha() or not name.isascii():
                raise refuse("PNG", "is corrupt: a chunk has no proper name")
            elif name in (b"IHDR", b"PLTE"):
                if name in self._chunks or self._pixel_data:
                    raise refuse("PNG", f"is corrupt: {name.decode()} is there twice or too late")
                self._chunks[name] = where
            elif not name[0] & 0x20:
                raise refuse("PNG", "has a critical chunk of an unknown kind")
            elif name == b"fcTL":
                # A frame whose control chunk stands before the pixel data consists of that data.
                self._chunks.setdefault(b"fcTL first" if not self._pixel_data else b"fcTL later", where)
            elif name in (b"tEXt", b"zTXt", b"iTXt"):
                if data[where[0] : where[0] + 22] in (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0\0\0\0\0"):
                    self._chunks.setdefault(b"text", where)
            elif name not in self._chunks and not (name in _BEFORE_DATA and self._pixel_data):
                self._chunks[name] = where
            if not previous and name != b"IHDR":
                raise refuse("PNG", "is corrupt: it does not begin with IHDR")
            previous = name
            at = after
        else:
            raise refuse("PNG", f"has more than {MAX_CHUNKS} chunks")
        raise refuse("PNG", "is truncated")

    def _header(self) -> None:
        if b"IHDR" not in self._chunks:
            raise refuse("PNG", "has no header")
        header = self._chunk(b"IHDR")
        if len(header) != 13:
            raise refuse("PNG", "has a header of another length")
        self.width, self.height, depth, colour, compression, filters, interlace = struct.unpack(">IIBBBBB", header)
        if not (0 < self.width < 1 << 31 and 0 < self.height < 1 << 31):
            raise refuse("PNG", "has no width or no height")
        if (colour, depth) not in _KINDS or compression or filters or interlace > 1:
            raise refuse("PNG", "has a header that the format does not know")
        if not self._pixel_data:
            raise refuse("PNG", "has no pixel data")
        self._colour, self._depth, self._interlaced = colour, depth, interlace
        self._kind = _KINDS[colour, depth]
        self._bits = self._kind[2]
        self.unusual = _FEW_COLOURS.get(self._kind[0])

    def _palette_and_key(self) -> None:
        """Raises ImageError where palette and transparency do not fit the colour type."""
        entries = len(self._chunk(b"PLTE")) if b"PLTE" in self._chunks else None
        if entries is not None and (entries % 3 or not 3 <= entries <= 768 or self._colour in (0, 4)):
            raise refuse("PNG", "has a palette of a length or at a place that the format does not know")
        indexed = self._colour == _COLOUR_TYPE_PALETTE
        if indexed and (entries is None or entries // 3 > 1 << self._depth):
            raise refuse("PNG", "has no palette, or more colours in it than it can use")
        self._see_through = self._colour in _WITH_ALPHA or b"tRNS" in self._chunks
        if b"tRNS" not in self._chunks:
            return
        length = len(self._chunk(b"tRNS"))
        fits = {0: length == 2, 2: length == 6, 3: 1 <= length <= (entries or 0) // 3}
        if not fits.get(self._colour, False):
            raise refuse("PNG", "has transparency that does not fit its colour type")
        if indexed and self._chunks[b"tRNS"] < self._chunks[b"PLTE"]:
            raise refuse("PNG", "has transparency before its palette")

    def _frames(self) -> None:
        """Raises AnimatedImage where there is more than one frame, or one beside the image itself."""
        if b"acTL" in self._chunks:
            frames = self._chunk(b"acTL")[:4]
            if frames != b"\0\0\0\1" or b"fcTL later" in self._chunks or b"fcTL first" not in self._chunks:
                raise AnimatedImage("the image is animated")

    def _rows(self) -> list[int]:
        """Bytes of the unpacked rows of each pass, filter bytes included."""
        if not self._interlaced:
            return [self.height * (1 + (self.width * self._bits + 7) // 8)]
        sizes = []
        for left, top, across, down in _ADAM7:
            width, height = -(-(self.width - left) // across), -(-(self.height - top) // down)
            sizes.append(height * (1 + (width * self._bits + 7) // 8) if width > 0 and height > 0 else 0)
        return sizes

    def _orientation(self) -> int:
        if b"eXIf" in self._chunks and (found := orientation(self._view(b"eXIf"))):
            return found
        if b"text" not in self._chunks:
            return 1
        start, end = self._chunks[b"text"]
        if self._data[start : start + 4] == b"XML:":
            return xmp_orientation(memoryview(self._data)[start:end]) or 1
        return orientation(self._raw_profile(start, end)) or 1

    def _raw_profile(self, start: int, end: int) -> bytes:
        """EXIF as ImageMagick writes it: hexadecimal text, with a line for its name and one for its length before."""
        text = self._data[start + 22 : min(end, start + 22 + MAX_TEXT_BYTES)]
        if self._data[start - 4 : start] == b"zTXt":
            try:
                text = zlib.decompressobj().decompress(text[1:], MAX_TEXT_BYTES)
            except zlib.error:
                return b""
        lines = text.split(b"\n", 3)
        digits = b"".join(lines[-1].split())
        try:
            return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))
        except ValueError:
            return b""

    def _colour_space(self) -> None:
        """Which of the four chunks that may tell a colour space counts, in the order of the specification."""
        chunks = self._chunks
        if b"cICP" in chunks:
            other = self._chunk(b"cICP") != _SRGB_CICP
        elif b"iCCP" in chunks:
            self._profiled, other = True, False
        elif b"sRGB" in chunks:
            other = False
        else:
            other = b"gAMA" in chunks and not _near(self._chunk(b"gAMA"), (_SRGB_GAMMA,), 0.02)
            other = other or (b"cHRM" in chunks and not _near(self._chunk(b"cHRM"), _SRGB_POINTS, 0.02))
        if other and self.unusual is None:
            self.unusual = "colour profile"

    def _chunk(self, name: bytes) -> bytes:
        start, end = self._chunks[name]
        return self._data[start:end]

    def _view(self, name: bytes) -> memoryview:
        start, end = self._chunks[name]
        return memoryview(self._data)[start:end]


def _high_bytes(image: Image.Image, white: int | None = None) -> Image.Image:
    """16-bit grey as 8-bit, `white` as 255. A table of 65,536 levels (`Image.point`) would take 3 ms of any image."""
    levels = np.asarray(image)
    grey = (levels >> 8).astype(np.uint8)
    if white is not None:
        grey[levels == white] = 255
    return Image.fromarray(grey)


_FEW_COLOURS: dict[str, Unusual] = {"P": "colour palette", "1": "1-bit image"}
# What stands in an image before its rows do; seldom what a whole row has.
_BEFORE: dict[str, int | tuple[int, ...]] = {
    "1": 0,
    "L": 93,
    "P": 93,
    "I;16": 31415,
    "LA": (93, 141),
    "RGB": (93, 141, 59),
    "RGBA": (93, 141, 59, 26),
}


def _near(chunk: bytes, expected: tuple[int, ...], tolerance: float) -> bool:
    """Whether a chunk of 4-byte integers holds what is expected, each within its share."""
    if len(chunk) != 4 * len(expected):
        return False
    found = struct.unpack(f">{len(expected)}I", chunk)
    return all(abs(value - wanted) <= tolerance * wanted for value, wanted in zip(found, expected, strict=True))


def _check_filled(data: bytes, needed: int) -> None:
    """Raises ImageError where `data` unpacks to less than `needed` bytes; never holds much of them."""
    unpacking, found, rest = zlib.decompressobj(), 0, data
    while found < needed and not unpacking.eof:
        piece = unpacking.decompress(rest, 1 << 16)
        found += len(piece)
        rest = unpacking.unconsumed_tail
        if not piece and not rest:
            break
    if found < needed:
        raise refuse("PNG", "is truncated: its data does not fill its rows")
