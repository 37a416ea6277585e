"""The contract: what a server must know about a model, as one JSON document inside the model itself.

It travels in `metadata_props["awnet.contract"]`, so labels, thresholds and reference change with the weights,
atomically. `docs/architecture.md` lists the fields; `SCHEMA_VERSION` rises when one changes its meaning.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from domain.statistics import STATISTICS

from ..options import MODES
from ..options import PRECISIONS as PRECISIONS
from .graph import modes_of, omega_layout, outputs_of
from .source import AWNet, Calibration, Checkpoint, Domain

SCHEMA_VERSION = 3
PRISTINE_ONLY = 1  # the version without domains, card and modes: what a checkpoint without domains is written in
CARD_FORMAT = 1
CARD_UNITS = ("share", "auroc")
CARD_TEXTS = ("title", "statement", "checkpoint_sha256", "date")
ROUNDING = 1e-9  # of the arithmetic that a figure and its interval came from
# The server's two operating points: verdict -> share of clean validation images that score above its threshold.
OPERATING_POINTS = {"suspicious": 0.05, "adversarial": 0.01}
# How far an engine may be from the golden outputs; wider than parity, because other machines round differently.
GOLDEN_TOLERANCE = 1e-3

Array = npt.NDArray[Any]


class ContractError(ValueError):
    """The checkpoint lacks something that a server needs."""


def check(
    checkpoint: Checkpoint,
    card: Mapping[str, Any] | None = None,
    modes: Collection[str] = ("auto",),
    precision: str = "float32",
) -> Calibration:
    """The calibration of a checkpoint that has all that `build` needs.

    Raises:
        ContractError: no calibration, a missing or impossible operating point, sizes that do not fit, an impossible
            domain, a card that lacks something, or no domains and something that only schema 3 can tell.
        graph.GraphError: modes that the network cannot have.
    """
    net, calibration = checkpoint.awnet, checkpoint.calibration
    if calibration is None:
        raise ContractError(
            "the checkpoint carries no calibration, so a server could give no verdict: "
            "export the best.pt that python -m training.train writes, which carries one"
        )
    if len(set(checkpoint.labels)) != net.config.num_classes:
        raise ContractError(f"{len(set(checkpoint.labels))} different labels for {net.config.num_classes} classes")
    channels = sum(length for _, _, length in omega_layout(net))
    for name in ("omega_mean", "omega_std"):
        if (shape := tuple(getattr(calibration, name).shape)) != (channels,):
            raise ContractError(f"calibration.{name} has shape {shape}, and the network has {channels} signals")
    parts: list[Calibration | Domain] = [calibration, *calibration.domains]
    for part in parts:
        suspicious, adversarial = (
            _threshold(part, OPERATING_POINTS[k])["score"] for k in ("suspicious", "adversarial")
        )
        if not 0 <= suspicious <= adversarial <= 1:
            raise ContractError(
                f"thresholds {suspicious} (suspicious) and {adversarial} (adversarial) must rise within [0, 1]"
            )
        edges = part.histogram_edges
        if len(edges) != len(part.histogram_counts) + 1 or edges != sorted(edges):
            raise ContractError("the calibration's histogram needs rising edges, one more than counts")
    for domain in calibration.domains:
        _check_domain(domain)
    if len({domain.name for domain in calibration.domains}) < len(calibration.domains):
        raise ContractError("two domains have one name")
    if not calibration.domains:
        for what, wanted in (
            ("a card needs", card is not None),
            ("modes need", modes_of(net, modes) != ["auto"]),
            (f"precision {precision} needs", precision != "float32"),
        ):
            if wanted:
                raise ContractError(f"{what} a checkpoint with domains: calibrate it with python -m training.calibrate")
    if card is not None:
        _check_card(card)
    return calibration


def _check_card(card: Mapping[str, Any]) -> None:
    if card.get("format") != CARD_FORMAT:
        raise ContractError(f"the card has format {card.get('format')!r}, and servers read {CARD_FORMAT}")
    if wanting := [key for key in CARD_TEXTS if not (isinstance(card.get(key), str) and card[key])]:
        raise ContractError(f"the card lacks {', '.join(wanting)}")
    if not isinstance(card.get("figures"), list):
        raise ContractError("the card lacks a list of figures")
    for figure in card["figures"]:
        _check_figure(figure)


def _check_figure(figure: Any) -> None:
    if not isinstance(figure, Mapping) or not all(figure.get(key) for key in ("name", "title")):
        raise ContractError("a figure of the card has no name or no title")
    interval: list[Any] = [figure.get(key) for key in ("low", "value", "high")]
    images, unit = figure.get("images"), figure.get("unit")
    if not all(type(number) in (int, float) and 0 <= number <= 1 for number in interval):
        raise ContractError(f"the card's figure {figure['name']} and its interval must lie from 0 to 1")
    low, value, high = interval
    if not low - ROUNDING <= value <= high + ROUNDING:
        raise ContractError(f"the card's figure {figure['name']} lies outside its interval")
    if type(images) is not int or images < 1 or unit not in CARD_UNITS:
        raise ContractError(f"the card's figure {figure['name']} needs images and one of the units {CARD_UNITS}")


def _check_domain(domain: Domain) -> None:
    if unknown := sorted(set(domain.ranges) - set(STATISTICS)):
        raise ContractError(f"domain {domain.name} has ranges of unknown statistics: {', '.join(unknown)}")
    if any(low > high for low, high in domain.ranges.values()):
        raise ContractError(f"domain {domain.name} has a range that ends before it begins")
    scores, probabilities = domain.map_scores, domain.map_probabilities
    if (
        len(scores) != len(probabilities)
        or len(scores) < 2
        or any(b <= a for a, b in pairwise(scores))
        or any(b < a for a, b in pairwise(probabilities))
        or not all(0 <= p <= 1 for p in (*scores, *probabilities))
    ):
        raise ContractError(f"domain {domain.name} needs a score map: scores that rise, probabilities that do not fall")


def build(
    checkpoint: Checkpoint,
    golden: Mapping[str, Array],
    *,
    checkpoint_sha256: str,
    exporter: str,
    card: Mapping[str, Any] | None = None,
    modes: Collection[str] = ("auto",),
    precision: str = "float32",
    tolerance: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The document of a calibrated AW-Net; errors as `check`.

    With domains in the calibration it is of schema 3, and its top thresholds are those of the last domain, so that a
    reader of one pair alone errs on the quiet side; without any it is of schema 1.

    Args:
        golden: `image` uint8 [M,3,H,W] and the right answers to it as float32: `logits` [M,K], `p_type` [M,2],
            `omega` [M, sum of c_out], and the outputs of further modes [M,K].
        checkpoint_sha256: of the file that the network came from.
        exporter: names and versions of what wrote the model.
        card: the figures of an audit (`card.json`) for whoever asks the server about the model; needs domains.
        modes: as `graph.build` got them; others than auto need domains.
        precision: of `PRECISIONS`; others than float32 need domains.
        tolerance: of golden outputs where it is not `GOLDEN_TOLERANCE`.
    """
    calibration = check(checkpoint, card, modes, precision)
    net = checkpoint.awnet
    outputs = outputs_of(modes_of(net, modes))
    domains = calibration.domains
    return {
        "schema_version": SCHEMA_VERSION if domains else PRISTINE_ONLY,
        "labels": list(checkpoint.labels),
        "preprocessing": {
            "size": net.config.image_size,
            "resize": "short_side",
            "filter": "bilinear_antialias",
            "crop": "center",
            "orientation": "exif",
        },
        "thresholds": _thresholds(domains[-1] if domains else calibration),
        **({"domains": [_domain(domain) for domain in domains], "card": dict(card or {})} if domains else {}),
        **(_schema_3(net, modes, precision) if domains else {}),
        "reference": {
            "images": calibration.images,
            "score_histogram": _histogram(calibration),
            "omega_mean": tensor(calibration.omega_mean.float().numpy()),
            "omega_std": tensor(calibration.omega_std.float().numpy()),
        },
        "omega": [{"name": name, "offset": offset, "length": length} for name, offset, length in omega_layout(net)],
        "golden": {
            **{name: tensor(golden[name]) for name in ("image", *outputs)},
            "tolerance": {**dict.fromkeys(outputs, GOLDEN_TOLERANCE), **(tolerance or {})},
        },
        "provenance": {
            "checkpoint_sha256": checkpoint_sha256,
            "recipe": str(checkpoint.recipe.get("name", "")),
            "commit": checkpoint.provenance.get("commit", ""),
            "report": checkpoint.provenance.get("report", ""),
            "exporter": exporter,
        },
    }


def _schema_3(net: AWNet, modes: Collection[str], precision: str) -> dict[str, Any]:
    """What the model can answer by, and how its numbers are made."""
    mixing: dict[str, Any] = {"kind": net.config.mixing}
    if net.config.mixing == "bounded":
        mixing |= {"limit": net.config.mixing_limit, "temperature": net.config.mixing_temperature}
    return {
        "modes": {mode: {"output": MODES[mode]} for mode in modes_of(net, modes)},
        "mixing": mixing,
        "precision": precision,
    }


def _domain(domain: Domain) -> dict[str, Any]:
    return {
        "name": domain.name,
        "about": domain.about,
        "ranges": {name: [float(low), float(high)] for name, (low, high) in domain.ranges.items()},
        "thresholds": _thresholds(domain),
        "images": domain.images,
        "kinds": list(domain.kinds),
        "score_histogram": _histogram(domain),
        "score_map": {
            "scores": [float(s) for s in domain.map_scores],
            "probabilities": [float(p) for p in domain.map_probabilities],
            "prior": domain.map_prior,
        },
        "rates": domain.rates,
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


def _histogram(part: Calibration | Domain) -> dict[str, Any]:
    return {
        "edges": [float(edge) for edge in part.histogram_edges],
        "counts": [int(count) for count in part.histogram_counts],
    }


def _thresholds(part: Calibration | Domain) -> dict[str, dict[str, float]]:
    return {name: _threshold(part, fpr) for name, fpr in OPERATING_POINTS.items()}


def _threshold(part: Calibration | Domain, fpr: float) -> dict[str, float]:
    for known, score in part.thresholds.items():
        if abs(known - fpr) < 1e-9:
            return {"score": float(score), "fpr": fpr}
    have = ", ".join(f"{known:.2%}" for known in sorted(part.thresholds)) or "none"
    raise ContractError(f"the calibration has no threshold for a false-positive rate of {fpr:.0%} (it has {have})")
