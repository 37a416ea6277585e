"""Parses the contract inside the model into typed objects, and refuses every value that it does not understand.

The exporter writes one JSON document into the ONNX metadata `awnet.contract`. It changes together with the weights,
so nothing about labels, preprocessing, thresholds or golden values is configured anywhere else. Contracts of schema 1,
from before there were domains, are read as one domain without ranges; those of schema 1 and 2, from before there were
modes, as a float32 model of mode auto that mixes batch norms.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ContractError
from . import fields
from .domains import Domain, Thresholds, read_domains, read_histogram, read_thresholds
from .modes import LOGITS, Mode

SCHEMA_VERSIONS = (1, 2, 3)
METADATA_KEY = "awnet.contract"
MAX_TOLERANCE = 0.1  # a golden test that accepts anything is no test
CARD_FORMAT = 1
CARD_UNITS = ("share", "auroc")
Precision = Literal["float32", "float16-weights", "int8"]
MixingKind = Literal["norms", "bounded"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_UNDERSTOOD = {
    "resize": "short_side",
    "filter": "bilinear_antialias",
    "crop": "center",
    "orientation": "exif",
}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input. `size` is the side of the square input, pixels."""

    size: int
    resize: str
    filter: str
    crop: str
    orientation: str


@dataclass(frozen=True)
class Reference:
    """Omega on pristine validation images: mean and std [C] float32 over so many images."""

    images: int
    omega_mean: NDArray[np.float32]
    omega_std: NDArray[np.float32]


@dataclass(frozen=True)
class OmegaSlice:
    """Channels [offset, offset + length) of omega belong to the convolution `name`."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True)
class Golden:
    """Inputs [M,3,H,W] uint8 and what a right engine gives for each output, with the largest absolute difference."""

    image: NDArray[np.uint8]
    outputs: Mapping[str, NDArray[np.float32]]
    tolerance: Mapping[str, float]


@dataclass(frozen=True)
class Mixing:
    """How P_type joins the two branches in mode auto.

    'norms': it weights their batch norms (Eq. 16). 'bounded': it weights their class probabilities, the natural one's
    by at most `limit`, below 0.5, where the adversarial one's logits are multiplied by `temperature` first.
    """

    kind: MixingKind = "norms"
    limit: float | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Contract:
    """Everything that a model says about itself.

    `domains` is never empty, see `domains`; `card` is the figures of the model's audit as JSON, None where it was not
    audited. `modes` are in the order of `modes.LOGITS`, 'auto' always among them.
    """

    labels: tuple[str, ...]
    preprocessing: Preprocessing
    domains: tuple[Domain, ...]
    reference: Reference
    omega: tuple[OmegaSlice, ...]
    golden: Golden
    provenance: Mapping[str, object]
    card: Mapping[str, Any] | None = None
    modes: tuple[Mode, ...] = ("auto",)
    mixing: Mixing = Mixing()
    precision: Precision = "float32"

    @property
    def outputs(self) -> dict[str, int]:
        """The columns of each of the model's outputs, which are float32 [N, columns]."""
        return _outputs(self.modes, len(self.labels), self.omega_channels)

    @property
    def omega_channels(self) -> int:
        return sum(part.length for part in self.omega)

    @property
    def thresholds(self) -> Thresholds:
        """Those of the widest domain, which flag least."""
        return self.domains[-1].thresholds


def parse(text: str | bytes) -> Contract:
    """The contract in `text`.

    Raises:
        ContractError: not JSON, another schema version, a missing or contradictory value.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"the contract is not JSON: {error}") from None
    top = fields.mapping(document, "contract")
    version = top.get("schema_version")
    if type(version) is not int or version not in SCHEMA_VERSIONS:
        known = ", ".join(map(str, SCHEMA_VERSIONS))
        raise ContractError(f"contract schema_version is {version!r}; this server reads {known}")

    labels = tuple(fields.text(label, "labels") for label in fields.sequence(top, "labels"))
    if len(labels) < 2 or len(set(labels)) != len(labels):
        fields.refuse("labels", "needs at least two, all different")
    omega = _omega(fields.sequence(top, "omega"))
    channels = sum(part.length for part in omega)
    preprocessing = _preprocessing(fields.mapping(top.get("preprocessing"), "preprocessing"))
    reference = fields.mapping(top.get("reference"), "reference")
    modes = _modes(fields.mapping(top.get("modes"), "modes")) if version >= 3 else Contract.modes
    outputs = _outputs(modes, len(labels), channels)
    return Contract(
        labels=labels,
        preprocessing=preprocessing,
        domains=_one_domain(top, reference) if version == 1 else _domains(top),
        reference=_reference(reference, channels),
        omega=omega,
        golden=_golden(fields.mapping(top.get("golden"), "golden"), preprocessing.size, outputs),
        provenance=fields.mapping(top.get("provenance", {}), "provenance"),
        card=None if version == 1 else _card(fields.mapping(top.get("card"), "card")),
        modes=modes,
        mixing=_mixing(fields.mapping(top.get("mixing"), "mixing")) if version >= 3 else Contract.mixing,
        precision=_precision(top.get("precision")) if version >= 3 else Contract.precision,
    )


def _outputs(modes: Iterable[Mode], classes: int, channels: int) -> dict[str, int]:
    return {"logits": classes, "p_type": 2, "omega": channels} | {LOGITS[mode]: classes for mode in modes}


def _one_domain(top: dict[str, Any], reference: dict[str, Any]) -> tuple[Domain, ...]:
    """Schema 1: calibrated on pristine images alone."""
    return (
        Domain(
            "pristine",
            "images of the model's own size in a lossless format",
            None,
            read_thresholds(fields.mapping(top.get("thresholds"), "thresholds"), "thresholds"),
            fields.integer(reference, "images", "reference", least=1),
            ("pristine",),
            read_histogram(reference.get("score_histogram"), "reference.score_histogram"),
        ),
    )


def _domains(top: dict[str, Any]) -> tuple[Domain, ...]:
    domains = read_domains(fields.sequence(top, "domains"))
    if read_thresholds(fields.mapping(top.get("thresholds"), "thresholds"), "thresholds") != domains[-1].thresholds:
        fields.refuse("thresholds", "are not those of the last domain")
    return domains


def _preprocessing(part: dict[str, Any]) -> Preprocessing:
    for key, understood in _UNDERSTOOD.items():
        if part.get(key) != understood:
            fields.refuse(f"preprocessing.{key}", f"is {part.get(key)!r}; this server does {understood!r}")
    size = fields.integer(part, "size", "preprocessing", least=3)  # what `domain.statistics` can measure
    return Preprocessing(size=size, **_UNDERSTOOD)


def _reference(part: dict[str, Any], channels: int) -> Reference:
    mean = fields.tensor(part.get("omega_mean"), "reference.omega_mean", np.float32, (channels,))
    std = fields.tensor(part.get("omega_std"), "reference.omega_std", np.float32, (channels,))
    return Reference(fields.integer(part, "images", "reference", least=1), mean, std)


def _omega(parts: list[Any]) -> tuple[OmegaSlice, ...]:
    layout, offset = [], 0
    for raw in parts:
        part = fields.mapping(raw, "omega")
        piece = OmegaSlice(
            fields.text(part.get("name"), "omega.name"),
            fields.integer(part, "offset", "omega", least=0),
            fields.integer(part, "length", "omega", least=1),
        )
        if piece.offset != offset:
            fields.refuse("omega", f"{piece.name} starts at {piece.offset}, the one before it ends at {offset}")
        offset += piece.length
        layout.append(piece)
    if not layout:
        fields.refuse("omega", "is empty")
    return tuple(layout)


def _golden(part: dict[str, Any], size: int, widths: Mapping[str, int]) -> Golden:
    image = fields.tensor(part.get("image"), "golden.image", np.uint8, (None, 3, size, size))
    rows = image.shape[0]
    if rows < 1:
        fields.refuse("golden.image", "is empty")
    outputs = {k: fields.tensor(part.get(k), f"golden.{k}", np.float32, (rows, width)) for k, width in widths.items()}
    given = fields.mapping(part.get("tolerance"), "golden.tolerance")
    tolerance = {key: fields.number(given, key, "golden.tolerance") for key in widths}
    if not all(0 < value <= MAX_TOLERANCE for value in tolerance.values()):
        fields.refuse("golden.tolerance", f"must lie in (0, {MAX_TOLERANCE}]")
    return Golden(image, outputs, tolerance)


def _modes(part: dict[str, Any]) -> tuple[Mode, ...]:
    unknown = [name for name in part if name not in LOGITS]
    if unknown:
        fields.refuse("modes", f"has {unknown[0]!r:.60}; this server knows {', '.join(LOGITS)}")
    if "auto" not in part:
        fields.refuse("modes", "has no 'auto'")
    modes = tuple(mode for mode in LOGITS if mode in part)
    for mode in modes:
        output = fields.mapping(part[mode], f"modes.{mode}").get("output")
        if output != LOGITS[mode]:
            fields.refuse(f"modes.{mode}.output", f"is {output!r:.60}, not {LOGITS[mode]!r}")
    return modes


def _mixing(part: dict[str, Any]) -> Mixing:
    kind = part.get("kind")
    if kind == "norms":
        return Mixing()
    if kind != "bounded":
        fields.refuse("mixing.kind", f"is {kind!r:.60}, not one of norms, bounded")
    limit, temperature = (fields.number(part, key, "mixing") for key in ("limit", "temperature"))
    if not 0 < limit < 0.5:
        fields.refuse("mixing.limit", f"is {limit!r}, not between 0 and 0.5")
    if not temperature > 0:
        fields.refuse("mixing.temperature", f"is {temperature!r}, not above 0")
    return Mixing(kind, limit, temperature)


def _precision(value: Any) -> Precision:
    if value not in PRECISIONS:
        fields.refuse("precision", f"is {value!r:.60}, not one of {', '.join(PRECISIONS)}")
    return PRECISIONS[PRECISIONS.index(value)]


def _card(part: dict[str, Any]) -> dict[str, Any] | None:
    if not part:
        return None
    if part.get("format") != CARD_FORMAT:
        fields.refuse("card.format", f"is {part.get('format')!r}; this server reads {CARD_FORMAT}")
    return {
        **{
            key: fields.text(part.get(key), f"card.{key}")
            for key in ("title", "statement", "checkpoint_sha256", "date")
        },
        "figures": [_figure(fields.mapping(raw, "card.figures")) for raw in fields.sequence(part, "figures", "card")],
    }


def _figure(part: dict[str, Any]) -> dict[str, Any]:
    name = fields.text(part.get("name"), "card.figures.name")
    where = f"card.figures.{name}"
    if part.get("unit") not in CARD_UNITS:
        fields.refuse(f"{where}.unit", f"is {part.get('unit')!r}, not one of {', '.join(CARD_UNITS)}")
    value, low, high = (fields.share(part.get(key), f"{where}.{key}") for key in ("value", "low", "high"))
    fields.interval(low, value, high, where)
    return {
        "name": name,
        "title": fields.text(part.get("title"), f"{where}.title"),
        **{"value": value, "low": low, "high": high},
        "images": fields.integer(part, "images", where, least=1),
        "unit": part["unit"],
    }
