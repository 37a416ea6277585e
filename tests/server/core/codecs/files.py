"""Image files written by hand, right and wrong."""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, depth: int, colour: int, interlaced: int = 0) -> bytes:
    """The chunk IHDR."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes, interlaced: int = 0) -> bytes:
    """A PNG with any header, any chunks before its data, and any unfiltered rows, filter bytes included."""
    data = chunk(b"IDAT", zlib.compress(rows))
    return SIGNATURE + header(width, height, depth, colour, interlaced) + b"".join(more) + data + chunk(b"IEND", b"")


def rows_of(samples: np.ndarray, depth: int) -> bytes:
    """The rows of samples [height, width * channels] of so many bits, without a filter."""
    if depth == 16:
        return b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
    return b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in bits)


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def grey_jpeg(
    width: int, height: int, *scans: bytes, frame: int = 0xC0, before: bytes = b"", tables: bytes | None = None
) -> bytes:
    """A grey JPEG of these scans, each with its header. One bit 0 is a DC difference of 0, another ends a block."""
    out = b"\xff\xd8" + before + segment(0xDB, b"\0" + b"\1" * 64)
    out += segment(frame, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    if tables is None:
        tables = b"".join(segment(0xC4, kind + b"\1" + b"\0" * 15 + b"\0") for kind in (b"\0", b"\x10"))
    return out + tables + b"".join(scans) + b"\xff\xd9"


def scan(data: bytes, first: int = 0, last: int = 63, approximation: int = 0) -> bytes:
    """A scan of the one component."""
    return segment(0xDA, bytes([1, 1, 0, first, last, approximation])) + data


def progressive(width: int, height: int, empty_scans: int) -> bytes:
    """A grey progressive JPEG with all its DC values and so many scans that refine nothing, of a few bytes each."""
    blocks = -(-width // 8) * -(-height // 8)
    runs = [1 << 14] * (blocks >> 14) + [1 << 14]
    bits = "".join("0" + format(run - (1 << 14), "014b") for run in runs)
    bits += "1" * (-len(bits) % 8)
    empty = scan(int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0"), 1)
    # The AC table has one code, for a run of at least 16384 blocks that end at once.
    tables = segment(0xC4, b"\0" + b"\1" + b"\0" * 15 + b"\0") + segment(0xC4, b"\x10" + b"\1" + b"\0" * 15 + b"\xe0")
    first = scan(bytes(-(-blocks // 8)), 0, 0)
    return grey_jpeg(width, height, first, *([empty] * empty_scans), frame=0xC2, tables=tables)


def riff(*chunks: bytes) -> bytes:
    """A WebP of these chunks."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def webp_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a WebP."""
    return kind + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) & 1)
