"""The orientation in EXIF and XMP metadata; nothing else of either is looked at.

Pillow reads all entries of EXIF, which takes seconds where there are a hundred thousand.
"""

from __future__ import annotations

import re
import struct

ORIENTATION = 0x0112
MAX_ENTRIES = 1024  # of the first directory; cameras write some twenty
MAX_XMP_BYTES = 64 << 10
_INTEGERS = {1: "B", 3: "H", 4: "I"}  # TIFF types
_XMP = re.compile(rb"tiff:Orientation(?:=\"|=\'|>)([1-8])")


def orientation(exif: bytes | memoryview) -> int | None:
    """The orientation, 1 to 8, in EXIF data (a TIFF header and what follows it); None where there is none."""
    data = bytes(exif[: 8 + (1 << 16)])
    if data[:6] == b"Exif\0\0":
        data = data[6:]
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return None
    (at,) = struct.unpack_from(order + "I", data, 4)
    if at + 2 > len(data):
        return None
    (count,) = struct.unpack_from(order + "H", data, at)
    for entry in range(min(count, MAX_ENTRIES)):
        place = at + 2 + 12 * entry
        if place + 12 > len(data):
            return None
        tag, kind = struct.unpack_from(order + "HH", data, place)
        if tag == ORIENTATION:
            value = struct.unpack_from(order + _INTEGERS[kind], data, place + 8)[0] if kind in _INTEGERS else 0
            return int(value) if value in range(1, 9) else None
    return None


def xmp_orientation(xmp: bytes | memoryview) -> int | None:
    """The orientation, 1 to 8, in an XMP packet."""
    found = _XMP.search(bytes(xmp[:MAX_XMP_BYTES]))
    return int(found[1]) if found else None
