"""What there is of one finding, for whoever has to show it: a ZIP with a manifest of hashes.

No image is kept, so none is in it; whoever has the file knows it by its hash, and `replay.txt` says how to get the
verdict again.
"""

from __future__ import annotations

import hashlib
import io
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from .. import __version__
from ..core.contract import Contract
from .chain import chains, read_line, segments, verify

Thresholds = dict[str, dict[str, dict[str, float]]]


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


def evidence(folder: Path, identity: str, models: Mapping[str, Thresholds]) -> bytes | None:
    """The ZIP; None where no such finding is kept. Raises OSError.

    Args:
        folder: of the journal.
        identity: of the finding.
        models: SHA-256 of a model's file -> its thresholds, of models that are at hand.
    """
    lines: list[bytes] = []
    last: dict[str, Any] = {}
    for chain in chains(folder):
        for path in segments(chain):
            for raw in path.read_bytes().split(b"\n")[:-1]:
                line = read_line(raw) if identity.encode() in raw else None
                if line is not None and line.document["finding_info"]["uid"] == identity:
                    lines.append(raw)
                    last = line.document if line.document["time"] >= last.get("time", 0) else last
    if not lines:
        return None
    model = last.get("resources", [{}])[0]
    checked = [verify(chain) for chain in chains(folder)]
    parts: dict[str, bytes] = {
        "events.jsonl": b"\n".join(lines) + b"\n",
        "finding.json": orjson.dumps(last, option=orjson.OPT_INDENT_2),
        "journal.json": orjson.dumps(
            [
                {"chain": one.folder.name, "lines": one.lines, "problems": one.problems, "head": str(one.head or "")}
                for one in checked
            ],
            option=orjson.OPT_INDENT_2,
        ),
        "replay.txt": _replay(last, model).encode(),
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


def _replay(event: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """How to get the verdict again, from the image's file and the model's."""
    image = event["unmapped"]["awnet"].get("image")
    if image is None or image["sha256"] is None:
        return "This finding is about no image in particular: there is nothing to ask again.\n"
    return (
        f"sha256sum IMAGE        # {image['sha256']}\n"
        f"sha256sum model.onnx   # {model['uid']}\n"
        f"awnet predict IMAGE --repository model.onnx --version 1 --mode {image['mode']}\n"
        f"# verdict {image['verdict']}, {image['score']!r} over {image['threshold']!r}, domain {image['domain']}\n"
        "# The hash of a tensor is that of its bytes, [3, size, size] uint8.\n"
    )
