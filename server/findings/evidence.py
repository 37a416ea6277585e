"""What there is of one finding, for whoever has to show it: a ZIP with a manifest of hashes.

The image is in it where it was kept (`quarantine`); else whoever has the file knows it by its hash. `replay.txt` says
how to get the verdict again.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from .. import __version__
from ..core.contract import Contract
from .chain import chains, verify
from .quarantine import read_image
from .reading import lines

Thresholds = dict[str, dict[str, dict[str, float]]]
# How a file begins -> what it is called, so that programs know it; the sender's name for it is not known.
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}


def thresholds(contract: Contract) -> Thresholds:
    """Domain -> operating point -> score and the rate that it stands for."""
    return {
        domain.name: {
            point: {"score": one.score, "fpr": one.fpr}
            for point, one in (
                ("suspicious", domain.thresholds.suspicious),
                ("adversarial", domain.thresholds.adversarial),
            )
        }
        for domain in contract.domains
    }


def evidence(folder: Path, identity: str, models: Mapping[str, Thresholds], with_image: bool) -> bytes | None:
    """The ZIP; None where no such finding is kept. Raises OSError.

    Args:
        folder: of the journal.
        identity: of the finding.
        models: SHA-256 of a model's file -> its thresholds, of models that are at hand.
        with_image: the image of the highest score that is kept is in it.
    """
    written: list[bytes] = []
    last: dict[str, Any] = {}
    images: dict[str, dict[str, Any]] = {}
    for chain in chains(folder):
        for raw, event in lines(chain, about=identity.encode()):
            if event["finding_info"]["uid"] == identity:
                written.append(raw)
                last = event if event["time"] >= last.get("time", 0) else last
                image = event["unmapped"]["awnet"].get("image")
                if image is not None and image["sha256"] is not None:
                    images[image["sha256"]] = image
    if not written:
        return None
    model = last.get("resources", [{}])[0]
    best = sorted(images.values(), key=lambda image: -image["score"])
    shown, files = best[0] if best else None, dict[str, bytes]()
    for image in best if with_image else []:
        data = read_image(folder, image["sha256"])
        if data is not None:
            shown, files = image, _files(image, data)
            break
    checked = [verify(chain) for chain in chains(folder)]
    parts: dict[str, bytes] = {
        "events.jsonl": b"\n".join(written) + b"\n",
        "finding.json": orjson.dumps(last, option=orjson.OPT_INDENT_2),
        "journal.json": orjson.dumps(
            [
                {"chain": one.folder.name, "lines": one.lines, "problems": one.problems, "head": str(one.head or "")}
                for one in checked
            ],
            option=orjson.OPT_INDENT_2,
        ),
        "replay.txt": _replay(shown, list(files), model).encode(),
        **files,
    }
    if model.get("uid") in models:
        parts["thresholds.json"] = orjson.dumps(models[model["uid"]], option=orjson.OPT_INDENT_2)
    manifest = {
        "finding": identity,
        "made": time.time_ns() // 1_000_000,
        "by": f"awnet-server {__version__}",
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in parts.items()
        },
    }
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in {"manifest.json": orjson.dumps(manifest, option=orjson.OPT_INDENT_2), **parts}.items():
            made.writestr(name, data)
    return held.getvalue()


def _files(image: Mapping[str, Any], data: bytes) -> dict[str, bytes]:
    """A kept image by the names that it has in the ZIP; a tensor as a picture of the same pixels, too."""
    shape = image.get("shape")
    if shape is not None:
        picture = {"image.png": _png(shape[1:], data)} if math.prod(shape) == len(data) else {}
        return {**picture, "image.tensor": data}
    suffix = next((suffix for begin, suffix in SUFFIXES.items() if data.startswith(begin)), "")
    return {f"image{suffix}": data}


def _png(size: Sequence[int], data: bytes) -> bytes:
    """[3, height, width] uint8 as a PNG: no codec is needed to write one."""
    height, width = size
    planes = [data[height * width * channel :][: height * width] for channel in range(3)]
    pixels = bytes(value for pixel in zip(*planes, strict=True) for value in pixel)
    rows = b"".join(b"\0" + pixels[3 * width * row :][: 3 * width] for row in range(height))  # 0: no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held)) for kind, held in chunks
    )


def _replay(image: Mapping[str, Any] | None, files: Sequence[str], model: Mapping[str, Any]) -> str:
    """How to get the verdict again, from the image's file, which may be one of `files`, and the model's."""
    if image is None:
        return "This finding is about no image in particular: there is nothing to ask again.\n"
    named, hashed = (files[0], files[-1]) if files else ("IMAGE", "IMAGE")
    absent = "" if files else "# The image is not in here: it is not kept, or not for whoever made this.\n"
    return (
        f"sha256sum {hashed:<12} # {image['sha256']}\n"
        f"sha256sum model.onnx   # {model['uid']}\n"
        f"awnet predict {named} --repository model.onnx --version 1 --mode {image['mode']}\n"
        f"# verdict {image['verdict']}, {image['score']!r} over {image['threshold']!r}, domain {image['domain']}\n"
        f"{absent}# The hash of a tensor is that of its bytes, [3, size, size] uint8.\n"
    )
