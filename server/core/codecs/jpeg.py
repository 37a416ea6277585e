"""JPEG (ITU-T T.81, baseline and progressive Huffman coding): segments and scans checked, pixels decoded by libjpeg.

The whole chain of segments and scans is walked before anything is decoded: a progressive file may hold thousands of
scans, each of which costs a pass over the image and next to no bytes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from PIL import Image

from domain.preprocessing import DRAFT_GAP

from .exif import orientation, xmp_orientation
from .file import MAX_PROFILE_BYTES, PROFILE_COST, Format, ImageFile, refuse

SIGNATURE = b"\xff\xd8\xff"
MAX_SEGMENTS = 1024  # a photograph has some twenty, one with a depth map in extended XMP a hundred
MAX_SCANS = 100  # the usual script has 10
MAX_FILL_BYTES = 4096  # before markers and between segments, in all
MAX_SAMPLING = 4
# Pixels: a block of 64 samples, one more scan over a block, a byte of data, one where blocks are refined, and a scan,
# however small.
BLOCK_COST, SCAN_COST, BYTE_COST, REFINED_BYTE_COST, SCAN_START_COST = 1, 3, 1, 4, 500

_EOI, _SOS, _DHT, _DNL, _DRI = 0xD9, 0xDA, 0xC4, 0xDC, 0xDD
_APP1, _APP2 = 0xE1, 0xE2
_FRAMES, _OTHER_FRAMES = (0xC0, 0xC1, 0xC2), (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_PROGRESSIVE = 0xC2
_MODES = {1: ("L", "L"), 3: ("RGB", "RGB"), 4: ("CMYK", "CMYK;I")}  # Adobe's convention, as Pillow assumes it
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # that ends the data of a scan: neither stuffing nor a restart
_MARKER_OR_RESTART = re.compile(rb"\xff[\x01-\xfe]")
# Behind the data of a scan in place of the next marker. A decoder makes up what is missing before a marker; at the end
# of what it was given it says so. It reads ahead by up to 57 bits, and these are 64, of which no code is made.
_STUFFED = b"\xff\x00"
_PADDING = _STUFFED * 8


class _Component(NamedTuple):
    """Of the frame: identifier, sampling factors, and its size in blocks where it has a scan to itself."""

    name: int
    across: int
    down: int
    blocks: int


class JPEGFile(ImageFile):
    """See `file.ImageFile`."""

    format: Format = "JPEG"

    def __init__(self, data: bytes) -> None:
        """Raises ImageError."""
        self._data = data
        self._components: tuple[_Component, ...] = ()
        self._progressive = False
        self._units = 0  # MCUs of a scan of all components
        self._restart_interval = 0
        self._scans = 0
        self._scan_blocks = 0  # of all scans
        self._scan_bytes = 0
        self._scan_ends: list[int] = []
        self._begun: set[int] = set()  # components that have data
        self._profile: dict[int, tuple[int, int, int]] = {}  # part: parts in all, start, end
        self._profile_fits = True
        self._end = 0
        self._walk()
        if len(self._begun) < len(self._components):
            raise refuse("JPEG", "is truncated: a colour component has no data")

    @property
    def lossy(self) -> bool:
        return True

    def reduction(self, size: int) -> int:
        least = min(self.width, self.height) // (DRAFT_GAP * size)
        return next(by for by in (8, 4, 2, 1) if least >= by or by == 1)

    def decoded_pixels(self, size: int) -> int:
        reduced = super().decoded_pixels(size)
        if not self._buffered:
            return reduced
        # The coefficients of several scans are all held, whatever the size of the result (three of them are a pixel),
        # and each scan passes over them.
        return max(reduced, self._frame_blocks * 64 // 3, SCAN_COST * self._scan_blocks)

    def cost(self, size: int) -> int:
        work = super().decoded_pixels(size) + BLOCK_COST * self._frame_blocks
        if self._buffered:
            work += SCAN_COST * self._scan_blocks + REFINED_BYTE_COST * self._scan_bytes
            work += SCAN_START_COST * self._scans
        else:
            work += BYTE_COST * self._scan_bytes
        return work + (PROFILE_COST if self._profile else 0)

    def profile(self) -> bytes | None:
        if not self._profile:
            return None
        parts = [self._profile.get(number) for number in range(1, len(self._profile) + 1)]
        if not self._profile_fits or any(part is None or part[0] != len(parts) for part in parts):
            return b""
        return b"".join([self._data[part[1] : part[2]] for part in parts if part is not None])

    def image(self, size: int) -> Image.Image:
        mode, raw = _MODES[len(self._components)]
        by = self.reduction(size)
        image = Image.new(mode, (_up(self.width, by), _up(self.height, by)))
        options = (raw, "", by, 0)
        if not self._buffered:
            image.frombytes(self._data[: self._end] + _PADDING, "jpeg", options)
            return image
        # Scan by scan. Behind a whole one the decoder looks for the next marker and skips whatever else it is given; in
        # one that is cut it waits for more: with a part of the padding, or with all of it and then not with a byte
        # more. Only what the padding's 64 bits could complete, some blocks at the end of a scan, is not noticed.
        decoder = Image._getdecoder(mode, "jpeg", options)
        decoder.setimage(image.im, (0, 0, *image.size))
        at = 0
        for end in self._scan_ends:
            for part in (self._data[at:end] + _PADDING, _STUFFED):
                if decoder.decode(part)[0] != len(part):
                    raise refuse("JPEG", "is truncated or corrupt")
            at = end
        if decoder.decode(self._data[at : self._end]) != (-1, 0):
            raise refuse("JPEG", "is truncated or corrupt")
        return image

    @property
    def _buffered(self) -> bool:
        """Whether all coefficients are held: the image is only complete after its last scan."""
        return self._progressive or self._scans > 1

    @property
    def _frame_blocks(self) -> int:
        return self._units * sum(component.across * component.down for component in self._components)

    def _walk(self) -> None:
        data, at, end = self._data, 2, len(self._data)
        fill = 0
        for _ in range(MAX_SEGMENTS):
            # Bytes that belong to nothing, then any number of 0xFF: a decoder skips them one by one.
            first = at
            at = data.find(b"\xff", at, at + MAX_FILL_BYTES + 1)
            while 0 <= at < end and data[at] == 0xFF and at - first <= MAX_FILL_BYTES + 1:
                at += 1
            if at < 0:
                at = min(end, first + MAX_FILL_BYTES + 2)
            fill += at - first - 1
            if fill > MAX_FILL_BYTES:
                raise refuse("JPEG", f"has more than {MAX_FILL_BYTES} bytes between its segments")
            if at >= end:
                break
            marker, at = data[at], at + 1
            if marker == _EOI:
                self._end = at
                if not self._scans:
                    raise refuse("JPEG", "has no data")
                return
            if marker < 0xC0 or 0xD0 <= marker <= 0xD8:
                raise refuse("JPEG", "is corrupt: a marker stands where none can")
            length = int.from_bytes(data[at : at + 2], "big")
            after = at + length
            if after > end or at + 2 > end:
                break
            if length < 2:
                raise refuse("JPEG", "is corrupt: a segment has no length")
            if marker == _SOS:
                after = self._scan(at + 2, after)
                if not after:
                    return
            elif marker in _FRAMES:
                self._frame(marker, data[at + 2 : after])
            elif marker in _OTHER_FRAMES:
                raise refuse("JPEG", "is coded in a way that is not accepted: neither baseline nor progressive Huffman")
            elif marker == _DNL:
                raise refuse("JPEG", "tells its height behind its data")
            elif marker == _DRI and length >= 4:
                self._restart_interval = int.from_bytes(data[at + 2 : at + 4], "big")
            elif marker in (_APP1, _APP2) and not self._scans:
                self._metadata(marker, at + 2, after)
            at = after
        else:
            raise refuse("JPEG", f"has more than {MAX_SEGMENTS} segments")
        raise refuse("JPEG", "is truncated")

    def _frame(self, marker: int, frame: bytes) -> None:
        """The header of the image. Raises ImageError."""
        if self._components:
            raise refuse("JPEG", "has two headers")
        if len(frame) < 6 or len(frame) != 6 + 3 * frame[5]:
            raise refuse("JPEG", "has a header of another length")
        precision = frame[0]
        self.height, self.width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
        if precision != 8 or frame[5] not in _MODES:
            raise refuse("JPEG", "has samples of more than 8 bits, or neither 1, 3 nor 4 components")
        if not self.width or not self.height:
            raise refuse("JPEG", "has no width or no height")
        self._progressive = marker == _PROGRESSIVE
        named = [(frame[k], frame[k + 1] >> 4, frame[k + 1] & 15) for k in range(6, len(frame), 3)]
        if any(not (0 < across <= MAX_SAMPLING and 0 < down <= MAX_SAMPLING) for _, across, down in named):
            raise refuse("JPEG", "has sampling factors that the format does not know")
        if len({name for name, _, _ in named}) < len(named):
            raise refuse("JPEG", "has two components of one name")
        most_across, most_down = max(a for _, a, _ in named), max(d for _, _, d in named)
        self._units = _up(self.width, 8 * most_across) * _up(self.height, 8 * most_down)
        self._components = tuple(
            _Component(
                name,
                across,
                down,
                _up(_up(self.width * across, most_across), 8) * _up(_up(self.height * down, most_down), 8),
            )
            for name, across, down in named
        )

    def _scan(self, at: int, after: int) -> int:
        """The end of the scan whose header lies there; 0 where the image is complete. Raises ImageError."""
        data = self._data
        header = data[at:after]
        if not self._components:
            raise refuse("JPEG", "has a scan before its header")
        self._scans += 1
        if self._scans > MAX_SCANS:
            raise refuse("JPEG", f"has more than {MAX_SCANS} scans")
        count = header[0] if header else 0
        if not 1 <= count <= 4 or len(header) != 4 + 2 * count:
            raise refuse("JPEG", "has a scan header of another length")
        names = [header[1 + 2 * k] for k in range(count)]
        members = [component for component in self._components if component.name in names]
        if len(members) != count:
            raise refuse("JPEG", "has a scan of components that it does not have")
        if count == 1:  # its units are its own blocks
            units = blocks = members[0].blocks
        else:
            units = self._units
            blocks = units * sum(component.across * component.down for component in members)
        self._scan_blocks += blocks

        pattern = _MARKER if self._restart_interval else _MARKER_OR_RESTART
        found = pattern.search(data, after)
        if found is None:
            raise refuse("JPEG", "is truncated")
        end = found.start()
        self._scan_bytes += end - after
        self._scan_ends.append(end)
        first, approximation = header[-3], header[-1] >> 4
        dc = not self._progressive or first == 0
        # A block takes a code for its DC value, and without scans to refine it another that ends it.
        bits = 0 if not dc else blocks if self._progressive else 2 * blocks
        self.short |= 8 * (end - after) < bits
        if self._restart_interval:
            restarts = sum(data.count(b"\xff" + bytes([marker]), after, end) for marker in range(0xD0, 0xD8))
            if restarts != _up(units, self._restart_interval) - 1:
                raise refuse("JPEG", "is corrupt: it has another number of restart markers than of intervals")
        if dc and not (self._progressive and approximation):
            if not self._progressive and self._begun.intersection(names):
                raise refuse("JPEG", "is corrupt: a component has two scans")
            self._begun.update(names)
        if not self._progressive and count == len(self._components):
            self._end = end  # whatever follows is no part of the image
            return 0
        return end

    def _metadata(self, marker: int, start: int, end: int) -> None:
        """EXIF, XMP and colour profile."""
        data = self._data
        if marker == _APP2:
            if data[start : start + 12] == b"ICC_PROFILE\0" and end - start > 14:
                number, total = data[start + 12], data[start + 13]
                taken = sum(part[2] - part[1] for part in self._profile.values()) + end - start - 14
                self._profile_fits &= taken <= MAX_PROFILE_BYTES and number not in self._profile
                self._profile.setdefault(number, (total, start + 14, end))
        elif data[start : start + 6] == b"Exif\0\0":
            self.orientation = orientation(memoryview(data)[start + 6 : end]) or self.orientation
        elif data[start : start + 29] == b"http://ns.adobe.com/xap/1.0/\0" and self.orientation == 1:
            self.orientation = xmp_orientation(memoryview(data)[start + 29 : end]) or 1


def _up(number: int, by: int) -> int:
    """The quotient, rounded up."""
    return -(-number // by)
