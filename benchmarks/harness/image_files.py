"""Image files written by hand: right, wrong, and made to be slow."""

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


def deflated(rows: bytes, tables: int = 0, level: int = 9) -> bytes:
    """`rows` as a zlib stream, after so many blocks that hold nothing but their Huffman tables, 11 bytes each."""
    stream = zlib.compress(rows, level)
    if not tables:
        return stream
    bits = [(0, 1), (2, 2), (0, 5), (0, 5), (14, 4)]  # dynamic; 257 lengths, 1 distance, 18 lengths of lengths
    used = {18: 1, 1: 2, 0: 2}
    bits += [(used.get(n, 0), 3) for n in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1)]
    bits += [(0, 1), (127, 7), (0, 1), (107, 7), (3, 2), (3, 2), (0, 1)]  # 256 zeros, the end's length, a distance, end
    block = np.concatenate([[value >> n & 1 for n in range(count)] for value, count in bits]).astype(np.uint8)
    # An empty stored block goes on at a whole byte.
    aligned = np.packbits(np.concatenate([np.tile(block, tables), np.zeros(3, np.uint8)]), bitorder="little")
    return stream[:2] + aligned.tobytes() + b"\0\0\xff\xff" + stream[2:]


def code_groups(width: int, height: int, groups: int, cache_bits: int = 0) -> bytes:
    """A lossless WebP of one colour whose tiles of 4 x 4 pixels have so many groups of codes, 5 bytes for each tile."""
    written: list[np.ndarray] = []

    def put(value: int, count: int) -> None:
        written.append(np.array([value >> n & 1 for n in range(count)], np.uint8))

    def one_symbol() -> None:
        put(0b0001, 4)  # simple, one symbol, of one bit: 0

    def all_bytes(alphabet: int) -> None:
        """A code in which the symbols 0 to 255 have 8 bits each, and others none."""
        lengths = {8: 1, 18: 1} if alphabet > 256 else {8: 1}
        put(0, 1)
        put(8, 4)
        for n in (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8):
            put(lengths.get(n, 0), 3)
        put(0, 1)
        if alphabet > 256:
            put(0, 256)
            put(1, 1)
            put(alphabet - 256 - 11, 7)

    for value, count in ((0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 1), (0, 3), (0, 1)):
        put(value, count)
    put(*((cache_bits << 1 | 1, 5) if cache_bits else (0, 1)))
    put(1, 1)  # groups of codes, in tiles of 4 x 4
    put(0, 3)
    put(0, 1)
    all_bytes(280)
    all_bytes(256)
    for _ in range(3):
        one_symbol()
    tiles = np.arange(-(-width // 4) * -(-height // 4)) % groups
    shifts = np.arange(7, -1, -1)
    written.append((np.stack([tiles & 255, tiles >> 8], 1)[..., None] >> shifts & 1).astype(np.uint8).ravel())
    written.append(np.tile(np.array([1, 0, 0, 0] * 5, np.uint8), groups))
    bits = np.concatenate([*written, np.zeros(64, np.uint8)])
    return riff(webp_chunk(b"VP8L", np.packbits(bits, bitorder="little").tobytes()))
