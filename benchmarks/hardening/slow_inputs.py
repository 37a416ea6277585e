"""Searches for images that take long to read or to decode for their bytes, and for what their structure says of them.

Files are made from parameters of their structure (sizes, depths, filters, scans, sampling, restarts, code tables,
profiles, metadata), the slowest are changed further, and some are spoilt at single bytes. Of each the CPU time of
reading and of decoding is taken, in this thread, of which three things follow: the slowest for a KB, the slowest to
read, and how the time compares with the estimate by which the server chooses where it decodes.
"""

from __future__ import annotations

import io
import random
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from server.core.codecs import png
from server.core.codecs.decode import decode, read
from server.errors import ImageError, UnsupportedMedia

from ..harness import image_files as files
from ..harness.report import add_out, loaded_machine, parser, publish

EXAMPLES = """examples:
  python -m benchmarks.hardening.slow_inputs                   a minute a format; writes results/slow_inputs.md
  python -m benchmarks.hardening.slow_inputs --seconds 3600    a long search
  python -m benchmarks.hardening.slow_inputs --corpus tests/server/core/codecs/slow    keeps the slowest there"""
SIZE = 32
NANOSECONDS_A_PIXEL = 10  # of an estimate, on the machine that its constants were measured on
LIMIT = 16_000_000  # pixels: what the server would refuse is of no interest
CORPUS_BYTES = 24 << 10  # of a file in the corpus
KEPT = 12  # files that are changed further
Genes = dict[str, Any]


@dataclass
class Found:
    """One file and what it took; seconds of CPU."""

    genes: Genes
    data: bytes
    reading: float
    decoding: float
    estimate: int
    outcome: str

    @property
    def seconds(self) -> float:
        return self.reading + self.decoding

    @property
    def per_kilobyte(self) -> float:
        """Milliseconds for each KB, of which the first is free: everybody may send one."""
        return 1000 * self.seconds / max(1.0, len(self.data) / 1024)

    @property
    def exceeds(self) -> float:
        """By which factor decoding took longer than estimated, where that matters."""
        return self.decoding / max(0.001, self.estimate * NANOSECONDS_A_PIXEL * 1e-9)


def png_genes(rng: random.Random) -> Genes:
    return {
        "width": rng.choice([8, 32, 100, 500, 1500, 4000]),
        "height": rng.choice([8, 32, 100, 500, 1500, 4000]),
        "kind": rng.choice(sorted(png._KINDS)),
        "filter": rng.randrange(5),
        "interlaced": rng.random() < 0.2,
        "noise": rng.random() < 0.2,
        "tables": rng.choice([0, 0, 10, 1000, 20_000]),
        "pieces": rng.choice([1, 1, 100, 4000]),
        "key": rng.random() < 0.3,
        "profile": rng.random() < 0.1,
        "text": rng.choice([0, 0, 1, 3000]),
        "exif": rng.random() < 0.1,
    }


def make_png(genes: Genes) -> bytes:
    colour, depth = genes["kind"]
    bits = png._KINDS[colour, depth][2]
    width, height = genes["width"], genes["height"]
    passes = png._ADAM7 if genes["interlaced"] else ((0, 0, 1, 1),)
    rows, source = [], np.random.default_rng(0)
    for left, top, across, down in passes:
        wide, high = -(-(width - left) // across), -(-(height - top) // down)
        if wide > 0 and high > 0:
            length = (wide * bits + 7) // 8
            line = source.bytes(length) if genes["noise"] else bytes(length)
            rows.append((bytes([genes["filter"]]) + line) * high)
    more = []
    if colour == 3:
        more.append(files.chunk(b"PLTE", bytes(3 << depth)))
    if genes["key"] and colour in (0, 2, 3):
        more.append(files.chunk(b"tRNS", bytes({0: 2, 2: 6, 3: 1}[colour])))
    if genes["profile"]:
        more.append(files.chunk(b"iCCP", b"p\0\0" + zlib.compress(profile())))
    more += [files.chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 16)))] * genes["text"]
    if genes["exif"]:
        more.append(files.chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65535)))
    data = files.deflated(b"".join(rows), genes["tables"], 1 if genes["noise"] else 9)
    step = -(-len(data) // genes["pieces"])
    pieces = [files.chunk(b"IDAT", data[at : at + step]) for at in range(0, len(data), step)]
    head = files.SIGNATURE + files.header(width, height, depth, colour, int(genes["interlaced"]))
    return head + b"".join(more) + b"".join(pieces) + files.chunk(b"IEND", b"")


def jpeg_genes(rng: random.Random) -> Genes:
    return {
        "width": rng.choice([8, 100, 1000, 3000, 8000, 30000]),
        "height": rng.choice([8, 100, 1000, 3000, 8000]),
        "components": rng.choice([1, 3, 3, 4]),
        "across": rng.randint(1, 4),
        "down": rng.randint(1, 4),
        "progressive": rng.random() < 0.7,
        "scans": [rng.choice(["first", "refine", "dc"]) for _ in range(rng.choice([0, 1, 5, 30, 99]))],
        "restart": rng.choice([0, 0, 0, 1, 100]),
        "noise": rng.random() < 0.3,
        "segments": rng.choice([0, 0, 100, 1000]),
        "fill": rng.choice([0, 0, 4000]),
        "exif": rng.random() < 0.1,
    }


def make_jpeg(genes: Genes) -> bytes:
    width, height, count = genes["width"], genes["height"], genes["components"]
    if genes["noise"]:
        side = (min(width, 2000), min(height, 2000))
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side[1], side[0], 3), np.uint8))
        file = io.BytesIO()
        image.convert({1: "L", 3: "RGB", 4: "CMYK"}[count]).save(
            file, "JPEG", quality=50, progressive=genes["progressive"], subsampling=2 if genes["across"] > 1 else 0
        )
        return file.getvalue()
    across, down = genes["across"], genes["down"]
    parts = [b"\1" + bytes([across << 4 | down]) + b"\0"] + [bytes([n, 0x11, 0]) for n in range(2, count + 1)]
    frame = (8).to_bytes(1, "big") + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bytes([count])
    out = b"\xff\xd8" + files.segment(0xFE, bytes(100)) * genes["segments"] + b"\xff" * genes["fill"]
    if genes["exif"]:
        out += files.segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\0\1\2\0" * 16000) * 12
    out += files.segment(0xDB, b"\0" + b"\1" * 64)
    out += files.segment(0xC2 if genes["progressive"] else 0xC0, frame + b"".join(parts))
    end = b"\xe0" if genes["progressive"] else b"\0"  # of at least 16384 blocks, or of one
    out += b"".join(
        files.segment(0xC4, kind + b"\1" + bytes(15) + code) for kind, code in ((b"\0", b"\0"), (b"\x10", end))
    )
    if genes["restart"]:
        out += files.segment(0xDD, genes["restart"].to_bytes(2, "big"))
    units = -(-width // (8 * across)) * -(-height // (8 * down)) if count > 1 else -(-width // 8) * -(-height // 8)
    blocks = across * down + count - 1 if count > 1 else 1
    bits = (1 if genes["progressive"] else 2) * blocks
    if genes["restart"]:
        pieces = -(-units // genes["restart"])
        piece = bytes(-(-genes["restart"] * bits // 8))
        data = b"".join(piece + bytes([0xFF, 0xD0 + n % 8]) for n in range(pieces))[:-2]
    else:
        data = bytes(-(-units * bits // 8))
    members = bytes([count]) + b"".join(bytes([n, 0]) for n in range(1, count + 1))
    out += files.segment(0xDA, members + bytes([0, 0 if genes["progressive"] else 63, 0])) + data
    if genes["progressive"]:
        alone = -(-width // 8) * -(-height // 8)
        runs = "0" + "1" * 14
        text = runs * (alone // 32767 + 1)
        text += "1" * (-len(text) % 8)
        empty = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
        for scan in genes["scans"]:
            first, last, level = {"first": (1, 63, 0), "refine": (1, 63, 0x10), "dc": (0, 0, 0x10)}[scan]
            body = data if scan == "dc" else empty
            head = members if scan == "dc" else b"\1\1\0"
            out += files.segment(0xDA, head + bytes([first, last, level])) + body
    return out + b"\xff\xd9"


def webp_genes(rng: random.Random) -> Genes:
    return {
        "width": rng.choice([8, 64, 256, 1000, 4000]),
        "height": rng.choice([8, 64, 256, 1000, 4000]),
        "how": rng.choice(["groups", "groups", "flat", "noise"]),
        "groups": rng.choice([1, 16, 256, 4096, 65536]),
        "cache": rng.choice([0, 1, 6, 11]),
        "alpha": rng.random() < 0.5,
        "lossless": rng.random() < 0.5,
        "quality": rng.choice([1, 50, 100]),
    }


def make_webp(genes: Genes) -> bytes:
    width, height = genes["width"], genes["height"]
    if genes["how"] == "groups":
        tiles = -(-width // 4) * -(-height // 4)
        return files.code_groups(width, height, min(genes["groups"], tiles, 65536), genes["cache"])
    mode = "RGBA" if genes["alpha"] else "RGB"
    if genes["how"] == "noise":
        width, height = min(width, 1000), min(height, 1000)
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), np.uint8), mode)
    else:
        image = Image.new(mode, (width, height))
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=genes["lossless"], quality=genes["quality"], method=0)
    return file.getvalue()


FORMATS: dict[str, tuple[Callable[[random.Random], Genes], Callable[[Genes], bytes]]] = {
    "PNG": (png_genes, make_png),
    "JPEG": (jpeg_genes, make_jpeg),
    "WebP": (webp_genes, make_webp),
}


def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def tried(genes: Genes, data: bytes) -> Found:
    """Read and decode one file. Raises whatever is no refusal."""
    begun, estimate, outcome = time.thread_time(), 0, "decoded"
    read_at = begun
    try:
        file = read(data)
        read_at = time.thread_time()
        estimate = file.cost(SIZE)
        if file.decoded_pixels(SIZE) > LIMIT:
            outcome = "too large"
        elif file.short:
            outcome = "cannot fill"
        else:
            decode(file, SIZE)
    except (ImageError, UnsupportedMedia) as error:
        outcome = error.detail
    ended = time.thread_time()
    if read_at == begun:
        read_at = ended
    return Found(genes, data, read_at - begun, ended - read_at, estimate, outcome)


def search(kind: str, seconds: float, rng: random.Random) -> list[Found]:
    """All files that were tried in so many seconds."""
    make_genes, make = FORMATS[kind]
    found: list[Found] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        best = sorted(found, key=lambda one: -one.per_kilobyte)[:KEPT]
        if best and rng.random() < 0.6:
            genes = dict(rng.choice(best).genes)
            fresh = make_genes(rng)
            for name in rng.sample(sorted(genes), rng.randint(1, 2)):
                genes[name] = fresh[name]
        else:
            genes = make_genes(rng)
        if genes["width"] * genes["height"] > 4 * LIMIT:
            continue
        data = make(genes)
        if len(data) > 8 << 20:
            continue
        if rng.random() < 0.2:
            spoilt = bytearray(data)
            for _ in range(rng.randint(1, 8)):
                spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
            data = bytes(spoilt)
        found.append(tried(genes, data))
    return found


def row(one: Found) -> list[str]:
    changed = {
        name: f"{len(value)} x {value[:1]}" if isinstance(value, list) else value for name, value in one.genes.items()
    }
    genes = ", ".join(f"{name} {value}" for name, value in changed.items() if value)
    return [
        f"{len(one.data):,}",
        f"{1000 * one.reading:.2f}",
        f"{1000 * one.decoding:.1f}",
        f"{one.per_kilobyte:.2f}",
        f"{one.exceeds:.2f}",
        one.outcome,
        genes,
    ]


def main(argv: list[str] | None = None) -> int:
    command_line = parser("hardening.slow_inputs", __doc__, EXAMPLES)
    command_line.add_argument("--seconds", type=float, default=60.0, help="for each format")
    command_line.add_argument("--seed", type=int, default=0)
    command_line.add_argument("--corpus", type=Path, help="folder for the slowest small files of each format")
    add_out(command_line, "slow_inputs")
    options = command_line.parse_args(argv)
    document: dict[str, Any] = {"machine": loaded_machine()}
    rng = random.Random(options.seed)
    machine = document["machine"]
    lines = [
        "# Images that are slow for their bytes",
        "",
        f"`python -m benchmarks.hardening.slow_inputs --seconds {options.seconds:g} --seed {options.seed}`: of each "
        "format the",
        "slowest for a KB (the first KB is free), the slowest to read, and those that took longest against their",
        f"estimate, of which a pixel is {NANOSECONDS_A_PIXEL} ns. CPU time of one thread. What has more than",
        f"{LIMIT:,} pixels to decode, or cannot fill them, is refused before it is decoded and shown as such.",
        f"On {machine['cpu']}, load {machine['load_before'][0]:.0f} before.",
        "",
    ]
    head = ["bytes", "read, ms", "decode, ms", "ms a KB", "of the estimate", "outcome", "made of"]
    for kind in FORMATS:
        found = search(kind, options.seconds, rng)
        slowest = sorted(found, key=lambda one: -one.per_kilobyte)
        tables = {
            "slowest for a KB": slowest[:5],
            "slowest to read": sorted(found, key=lambda one: -one.reading)[:3],
            "longest against its estimate": sorted(found, key=lambda one: -one.exceeds)[:3],
        }
        lines += [f"## {kind}: {len(found):,} files", ""]
        for name, chosen in tables.items():
            lines += [f"**{name}**", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
            lines += [f"| {' | '.join(row(one))} |" for one in chosen] + [""]
        document[kind] = {
            "files": len(found),
            "worst_ms_per_kilobyte": slowest[0].per_kilobyte,
            "worst_of_estimate": max(one.exceeds for one in found),
            "worst_reading_ms": 1000 * max(one.reading for one in found),
        }
        print(f"{kind}: {document[kind]}", file=sys.stderr)
        if options.corpus:
            options.corpus.mkdir(parents=True, exist_ok=True)
            small = [one for one in slowest if len(one.data) <= CORPUS_BYTES and one.outcome == "decoded"]
            sizes = {len(one.data): one for one in reversed(small)}  # of files of one length the slowest
            kept = sorted(sizes.values(), key=lambda one: -one.per_kilobyte)[:4]
            kept += sorted(sizes.values(), key=lambda one: -one.exceeds)[:2]
            for place, one in enumerate(kept):
                (options.corpus / f"{kind.lower()}-{place}.bin").write_bytes(one.data)
    publish(options.out, document, "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
