"""WebP (RFC 9649): the chunks of the container checked, pixels decoded by libwebp through Pillow's reader."""

from __future__ import annotations

import io

from PIL import Image

from ...errors import AnimatedImage
from .exif import orientation, xmp_orientation
from .file import MAX_PROFILE_BYTES, PROFILE_COST, Format, ImageFile, refuse

MAX_CHUNKS = 64  # beside frames; a file with everything has eight
# Pixels: a pixel, one with transparency, a byte of coefficients, and a byte of lossless data, which may be part of a
# table of codes. A table that is used is for at least 16 pixels; those of groups that are not, of which there may be
# 65,536 of 20 bits, are read all the same.
PIXEL_COST, ALPHA_COST, BYTE_COST, TABLE_BYTE_COST, TABLE_PIXEL_COST = 2, 4, 6, 150, 50
MOST_UNUSED_BYTES = 65_536 * 20 // 8
_ANIMATION, _XMP, _EXIF, _ALPHA, _PROFILE = 0x02, 0x04, 0x08, 0x10, 0x20  # flags of VP8X
_DROPPED = _XMP | _EXIF | _PROFILE


class WebPFile(ImageFile):
    """See `file.ImageFile`."""

    format: Format = "WEBP"

    def __init__(self, data: bytes) -> None:
        """Raises ImageError, AnimatedImage."""
        self._data = data
        self._extended: tuple[int, int] | None = None
        self._parts: list[tuple[bytes, int, int]] = []  # what a decoder needs: kind, start and end of the payload
        self._profile: tuple[int, int] | None = None
        self._lossless = False
        self._see_through = False
        self.width = self.height = 0
        self._walk()

    @property
    def lossy(self) -> bool:
        return not self._lossless

    def cost(self, size: int) -> int:
        pixel = ALPHA_COST if self._see_through else PIXEL_COST
        pixels, data = self.width * self.height, sum(end - start for _, start, end in self._parts)
        work = pixel * pixels + BYTE_COST * data
        if self._lossless or self._see_through:  # transparency is stored as a lossless image
            work += min(TABLE_BYTE_COST * data, TABLE_PIXEL_COST * pixels + TABLE_BYTE_COST * MOST_UNUSED_BYTES)
        return work + (PROFILE_COST if self._profile else 0)

    def profile(self) -> bytes | None:
        if self._profile is None:
            return None
        start, end = self._profile
        return self._data[start:end] if end - start <= MAX_PROFILE_BYTES else b""

    def image(self, size: int) -> Image.Image:
        chunks = [_chunk(kind, self._data[start:end]) for kind, start, end in self._parts]
        if self._extended is not None:
            start, end = self._extended
            flags = self._data[start] & ~_DROPPED
            chunks.insert(0, _chunk(b"VP8X", bytes([flags]) + self._data[start + 1 : end]))
        body = b"WEBP" + b"".join(chunks)
        with Image.open(io.BytesIO(b"RIFF" + len(body).to_bytes(4, "little") + body), formats=("WEBP",)) as image:
            if image.size != (self.width, self.height):
                raise refuse("WEBP", "is corrupt: its headers tell different sizes")
            image.load()
        return image

    def _walk(self) -> None:
        """Raises ImageError, AnimatedImage."""
        data = self._data
        end = 8 + int.from_bytes(data[4:8], "little")
        if end > len(data):
            raise refuse("WEBP", "is truncated")
        frames, pixels, others = 0, 0, 0
        at = 12
        while at + 8 <= end and others <= MAX_CHUNKS:
            kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
            start, after = at + 8, at + 8 + length
            if after > end:
                raise refuse("WEBP", "is truncated")
            at = after + (length & 1)
            if kind in (b"VP8 ", b"VP8L"):
                pixels += 1
                self._frame(kind, start, after)
                if self._extended is None:
                    break  # of a simple file nothing else counts
            elif kind == b"VP8X" and start == 20:
                self._header(start, after)
            elif self._extended is None:
                raise refuse("WEBP", "does not begin with its pixels or its header")
            elif kind == b"ANMF":
                frames += 1
                if frames > 1:
                    raise AnimatedImage("the image has more than one frame")
                self._animation_frame(start, after)
            elif kind in (b"ALPH", b"ANIM"):
                self._parts.append((kind, start, after))
                self._see_through |= kind == b"ALPH"
            elif kind == b"ICCP" and self._profile is None:
                self._profile = (start, after)
            elif kind == b"EXIF":
                self.orientation = orientation(memoryview(data)[start:after]) or self.orientation
            elif kind == b"XMP " and self.orientation == 1:
                self.orientation = xmp_orientation(memoryview(data)[start:after]) or 1
            others += 1
        if others > MAX_CHUNKS:
            raise refuse("WEBP", f"has more than {MAX_CHUNKS} chunks")
        if pixels + frames != 1:
            raise refuse("WEBP", "has no pixels, or several times some")
        if not self.width or not self.height:
            raise refuse("WEBP", "has no width or no height")

    def _header(self, start: int, end: int) -> None:
        if end - start < 10:
            raise refuse("WEBP", "has a header of another length")
        self._extended = (start, end)
        self._see_through = bool(self._data[start] & _ALPHA)
        self.width = 1 + int.from_bytes(self._data[start + 4 : start + 7], "little")
        self.height = 1 + int.from_bytes(self._data[start + 7 : start + 10], "little")

    def _frame(self, kind: bytes, start: int, end: int) -> None:
        width, height = self._size(kind, start, end)
        if self._extended is not None and (width, height) != (self.width, self.height):
            raise refuse("WEBP", "is corrupt: its headers tell different sizes")
        self.width, self.height = width, height
        self._parts.append((kind, start, end))

    def _size(self, kind: bytes, start: int, end: int) -> tuple[int, int]:
        """Width and height of a bitstream. Raises ImageError."""
        head = self._data[start : min(end, start + 10)]
        if kind == b"VP8L":
            if len(head) < 5 or head[0] != 0x2F:
                raise refuse("WEBP", "is corrupt: its pixels have no header")
            self._lossless = True
            bits = int.from_bytes(head[1:5], "little")
            self._see_through |= bool(bits >> 28 & 1)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if len(head) < 10 or head[3:6] != b"\x9d\x01\x2a" or head[0] & 1:
            raise refuse("WEBP", "is corrupt: its pixels have no header")
        if int.from_bytes(head[:3], "little") >> 5 > end - start - 10:
            raise refuse("WEBP", "is truncated")
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF

    def _animation_frame(self, start: int, end: int) -> None:
        """The only frame of an animation: an image like any other. Raises ImageError."""
        self._parts.append((b"ANMF", start, end))
        self._see_through = True
        at = start + 16
        while at + 8 <= end:
            kind, length = self._data[at : at + 4], int.from_bytes(self._data[at + 4 : at + 8], "little")
            if kind in (b"VP8 ", b"VP8L"):
                if at + 8 + length > end:
                    break
                width, height = self._size(kind, at + 8, at + 8 + length)
                if width > self.width or height > self.height:
                    break
                return
            at += 8 + length + (length & 1)
        raise refuse("WEBP", "has a frame that cannot be read")


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + len(payload).to_bytes(4, "little") + payload + b"\0" * (len(payload) & 1)
