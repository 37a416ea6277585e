"""Contracts of schema 2: those of schema 1, as `tiny` and the bundled version 2 carry them, with domains put in."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from tests.server.tiny import write

ABOUT = {"pristine": "images as the validation split has them", "pool": "those and sixteen corruptions of them"}
RANGES: dict[str, dict[str, list[float]]] = {
    "pristine": {"colours": [0.3, 1.0]},
    "pool": {"colours": [0.02, 1.0]},
}
THRESHOLDS = {"pristine": (0.3, 0.5), "pool": (0.6, 0.9)}
CARD = {
    "format": 1,
    "title": "awnet",
    "statement": "The detector pays nothing at T3.",
    "checkpoint_sha256": "0" * 64,
    "date": "2026-11-28",
    "figures": [
        {"name": "clean", "title": "Accuracy", "value": 0.7, "low": 0.6, "high": 0.8, "images": 100, "unit": "share"}
    ],
}


def domain(name: str, points: int = 3) -> dict[str, Any]:
    """One domain with made-up figures. Its score map is P(attacked) = score at even odds."""
    suspicious, adversarial = THRESHOLDS[name]
    line = [n / (points - 1) for n in range(points)]
    rate = {"suspicious": [0.05, 0.04, 0.06], "adversarial": [0.01, 0.0, 0.02]}
    return {
        "name": name,
        "about": ABOUT[name],
        "ranges": {statistic: list(ends) for statistic, ends in RANGES[name].items()},
        "thresholds": {
            "suspicious": {"score": suspicious, "fpr": 0.05},
            "adversarial": {"score": adversarial, "fpr": 0.01},
        },
        "images": 5000,
        "kinds": ["pristine"] if name == "pristine" else ["pristine", "blur"],
        "score_histogram": {"edges": [0, 0.5, 1], "counts": [4950, 50]},
        "score_map": {"scores": line, "probabilities": line.copy(), "prior": 0.5},
        "rates": {
            "fpr_pristine": rate,
            "fpr_worst": {"kind": "blur", "strength": 3, **copy.deepcopy(rate)},
            "tpr_t0": {"8": copy.deepcopy(rate), "4": copy.deepcopy(rate)},
        },
    }


def schema_2(*names: str, card: dict[str, Any] | None = None, points: int = 3) -> Callable[[dict[str, Any]], None]:
    """Turns a contract of schema 1 into one with these domains; for `tiny.publish`. `points`: of each score map."""

    def change(document: dict[str, Any]) -> None:
        document["schema_version"] = 2
        document["domains"] = [domain(name, points) for name in names or tuple(RANGES)]
        document["thresholds"] = copy.deepcopy(document["domains"][-1]["thresholds"])
        document["card"] = copy.deepcopy(card or {})

    return change


def republish(model: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write the version at `model` (a `model.onnx`) to `folder` with its contract changed."""
    loaded = onnx.load(model)
    properties = {p.key: p.value for p in loaded.metadata_props}
    contract = json.loads(properties["awnet.contract"])
    change(contract)
    properties["awnet.contract"] = json.dumps(contract, separators=(",", ":"))
    helper.set_model_props(loaded, properties)
    write(folder, loaded.SerializeToString())
