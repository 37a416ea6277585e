"""The contract: what a server must know about a model, as one JSON document inside the model itself.

It travels in `metadata_props["awnet.contract"]`, so labels, thresholds and reference change with the weights,
atomically. `docs/architecture.md` lists the fields; `SCHEMA_VERSION` rises when one changes its meaning.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .graph import omega_layout
from .source import Calibration, Checkpoint

SCHEMA_VERSION = 1
METADATA_KEY = "awnet.contract"
# The server's two operating points: verdict -> share of clean validation images that score above its threshold.
OPERATING_POINTS = {"suspicious": 0.05, "adversarial": 0.01}
# How far an engine may be from the golden outputs; wider than parity, because other machines round differently.
GOLDEN_TOLERANCE = {"logits": 1e-3, "p_type": 1e-3, "omega": 1e-3}

Array = npt.NDArray[Any]


class ContractError(ValueError):
    """The checkpoint lacks something that a server needs."""


def check(checkpoint: Checkpoint) -> Calibration:
    """The calibration of a checkpoint that has all that `build` needs.

    Raises:
        ContractError: no calibration, a missing or impossible operating point, or sizes that do not fit.
    """
    config, calibration = checkpoint.awnet.config, checkpoint.calibration
    if calibration is None:
        raise ContractError(
            "the checkpoint carries no calibration, so a server could give no verdict: "
            "export the best.pt that python -m training.train writes, which carries one"
        )
    if len(set(checkpoint.labels)) != config.num_classes:
        raise ContractError(f"{len(set(checkpoint.labels))} different labels for {config.num_classes} classes")
    channels = sum(length for _, _, length in omega_layout(checkpoint.awnet))
    for name in ("omega_mean", "omega_std"):
        if (shape := tuple(getattr(calibration, name).shape)) != (channels,):
            raise ContractError(f"calibration.{name} has shape {shape}, and the network has {channels} signals")
    suspicious, adversarial = (
        _threshold(calibration, OPERATING_POINTS[k])["score"] for k in ("suspicious", "adversarial")
    )
    if not 0 <= suspicious <= adversarial <= 1:
        raise ContractError(
            f"thresholds {suspicious} (suspicious) and {adversarial} (adversarial) must rise within [0, 1]"
        )
    edges = calibration.histogram_edges
    if len(edges) != len(calibration.histogram_counts) + 1 or edges != sorted(edges):
        raise ContractError("the calibration's histogram needs rising edges, one more than counts")
    return calibration


def build(
    checkpoint: Checkpoint, golden: Mapping[str, Array], *, checkpoint_sha256: str, exporter: str
) -> dict[str, Any]:
    """The document of a calibrated AW-Net; errors as `check`.

    Args:
        golden: `image` uint8 [M,3,H,W] and what torch answers to it in float32: `logits` [M,K], `p_type` [M,2],
            `omega` [M, sum of c_out].
        checkpoint_sha256: of the file that the network came from.
        exporter: names and versions of what wrote the model.
    """
    calibration = check(checkpoint)
    net = checkpoint.awnet
    return {
        "schema_version": SCHEMA_VERSION,
        "labels": list(checkpoint.labels),
        "preprocessing": {
            "size": net.config.image_size,
            "resize": "short_side",
            "filter": "bilinear_antialias",
            "crop": "center",
            "orientation": "exif",
        },
        "thresholds": {name: _threshold(calibration, fpr) for name, fpr in OPERATING_POINTS.items()},
        "reference": {
            "images": calibration.images,
            "score_histogram": {
                "edges": [float(edge) for edge in calibration.histogram_edges],
                "counts": [int(count) for count in calibration.histogram_counts],
            },
            "omega_mean": tensor(calibration.omega_mean.float().numpy()),
            "omega_std": tensor(calibration.omega_std.float().numpy()),
        },
        "omega": [{"name": name, "offset": offset, "length": length} for name, offset, length in omega_layout(net)],
        "golden": {
            **{name: tensor(golden[name]) for name in ("image", "logits", "p_type", "omega")},
            "tolerance": dict(GOLDEN_TOLERANCE),
        },
        "provenance": {
            "checkpoint_sha256": checkpoint_sha256,
            "recipe": str(checkpoint.recipe.get("name", "")),
            "commit": checkpoint.provenance.get("commit", ""),
            "report": checkpoint.provenance.get("report", ""),
            "exporter": exporter,
        },
    }


def encode(document: Mapping[str, Any]) -> str:
    """Compact JSON; ValueError where a number is not finite, which JSON cannot express."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def tensor(array: Array) -> dict[str, Any]:
    """An array as {dtype, shape, base64 of its little-endian bytes}."""
    if array.dtype not in (np.float32, np.uint8):
        raise ContractError(f"the contract holds float32 and uint8 tensors, not {array.dtype}")
    raw = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "base64": base64.b64encode(raw).decode("ascii")}


def _threshold(calibration: Calibration, fpr: float) -> dict[str, float]:
    for known, score in calibration.thresholds.items():
        if abs(known - fpr) < 1e-9:
            return {"score": float(score), "fpr": fpr}
    have = ", ".join(f"{known:.2%}" for known in sorted(calibration.thresholds)) or "none"
    raise ContractError(f"the calibration has no threshold for a false-positive rate of {fpr:.0%} (it has {have})")
