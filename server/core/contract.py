"""Parses the contract inside the model into typed objects, and refuses every value that it does not understand.

The exporter writes one JSON document into the ONNX metadata `awnet.contract`. It changes together with the weights,
so nothing about labels, preprocessing, thresholds or golden values is configured anywhere else.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import ContractError

SCHEMA_VERSION = 1
METADATA_KEY = "awnet.contract"
MAX_TOLERANCE = 0.1  # a golden test that accepts anything is no test

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
class Threshold:
    """Scores above `score` are flagged; `fpr` is the share of clean validation images that were."""

    score: float
    fpr: float


@dataclass(frozen=True)
class Thresholds:
    """The two operating points of the detector."""

    suspicious: Threshold
    adversarial: Threshold


@dataclass(frozen=True)
class Reference:
    """What clean validation images looked like: score histogram, omega mean and std [C] float32."""

    images: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
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
    """Inputs [M,3,H,W] uint8 and the outputs that a right engine gives, with the largest absolute difference."""

    image: NDArray[np.uint8]
    outputs: Mapping[str, NDArray[np.float32]]
    tolerance: Mapping[str, float]


@dataclass(frozen=True)
class Contract:
    """Everything that a model says about itself."""

    labels: tuple[str, ...]
    preprocessing: Preprocessing
    thresholds: Thresholds
    reference: Reference
    omega: tuple[OmegaSlice, ...]
    golden: Golden
    provenance: Mapping[str, object]

    @property
    def omega_channels(self) -> int:
        return sum(part.length for part in self.omega)


def parse(text: str | bytes) -> Contract:
    """The contract in `text`.

    Raises:
        ContractError: not JSON, another schema version, a missing or contradictory value.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ContractError(f"the contract is not JSON: {error}") from None
    top = _object(document, "contract")
    version = top.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ContractError(f"contract schema_version is {version!r}; this server reads {SCHEMA_VERSION}")

    labels = tuple(_text(label, "labels") for label in _list(top, "labels"))
    if len(labels) < 2 or len(set(labels)) != len(labels):
        _refuse("labels", "needs at least two, all different")
    omega = _omega(_list(top, "omega"))
    channels = sum(part.length for part in omega)
    preprocessing = _preprocessing(_object(top.get("preprocessing"), "preprocessing"))
    return Contract(
        labels=labels,
        preprocessing=preprocessing,
        thresholds=_thresholds(_object(top.get("thresholds"), "thresholds")),
        reference=_reference(_object(top.get("reference"), "reference"), channels),
        omega=omega,
        golden=_golden(_object(top.get("golden"), "golden"), preprocessing.size, len(labels), channels),
        provenance=_object(top.get("provenance", {}), "provenance"),
    )


def _preprocessing(part: dict[str, Any]) -> Preprocessing:
    for key, understood in _UNDERSTOOD.items():
        if part.get(key) != understood:
            _refuse(f"preprocessing.{key}", f"is {part.get(key)!r}; this server does {understood!r}")
    return Preprocessing(size=_integer(part, "size", "preprocessing", least=1), **_UNDERSTOOD)


def _thresholds(part: dict[str, Any]) -> Thresholds:
    suspicious, adversarial = (
        Threshold(_number(_object(part.get(name), where), "score", where), _number(part[name], "fpr", where))
        for name, where in (("suspicious", "thresholds.suspicious"), ("adversarial", "thresholds.adversarial"))
    )
    for threshold in (suspicious, adversarial):
        if not (0 <= threshold.score <= 1 and 0 < threshold.fpr < 1):
            _refuse("thresholds", "needs scores in [0, 1] and false-positive rates in (0, 1)")
    if suspicious.score > adversarial.score or suspicious.fpr < adversarial.fpr:
        _refuse("thresholds", "'adversarial' must be the stricter of the two")
    return Thresholds(suspicious, adversarial)


def _reference(part: dict[str, Any], channels: int) -> Reference:
    histogram = _object(part.get("score_histogram"), "reference.score_histogram")
    edges = tuple(float(_finite(e, "reference edges")) for e in _list(histogram, "edges"))
    counts = tuple(int(_finite(c, "reference counts")) for c in _list(histogram, "counts"))
    if len(edges) != len(counts) + 1 or list(edges) != sorted(edges) or min(counts, default=0) < 0:
        _refuse("reference.score_histogram", "needs rising edges, one more than counts")
    mean = tensor(part.get("omega_mean"), "reference.omega_mean", np.float32, (channels,))
    std = tensor(part.get("omega_std"), "reference.omega_std", np.float32, (channels,))
    return Reference(_integer(part, "images", "reference", least=1), edges, counts, mean, std)


def _omega(parts: list[Any]) -> tuple[OmegaSlice, ...]:
    layout, offset = [], 0
    for raw in parts:
        part = _object(raw, "omega")
        piece = OmegaSlice(
            _text(part.get("name"), "omega.name"),
            _integer(part, "offset", "omega", least=0),
            _integer(part, "length", "omega", least=1),
        )
        if piece.offset != offset:
            _refuse("omega", f"{piece.name} starts at {piece.offset}, the one before it ends at {offset}")
        offset += piece.length
        layout.append(piece)
    if not layout:
        _refuse("omega", "is empty")
    return tuple(layout)


def _golden(part: dict[str, Any], size: int, classes: int, channels: int) -> Golden:
    image = tensor(part.get("image"), "golden.image", np.uint8, (None, 3, size, size))
    rows = image.shape[0]
    if rows < 1:
        _refuse("golden.image", "is empty")
    widths = {"logits": classes, "p_type": 2, "omega": channels}
    outputs = {k: tensor(part.get(k), f"golden.{k}", np.float32, (rows, width)) for k, width in widths.items()}
    given = _object(part.get("tolerance"), "golden.tolerance")
    tolerance = {key: _number(given, key, "golden.tolerance") for key in widths}
    if not all(0 < value <= MAX_TOLERANCE for value in tolerance.values()):
        _refuse("golden.tolerance", f"must lie in (0, {MAX_TOLERANCE}]")
    return Golden(image, outputs, tolerance)


def tensor(raw: Any, where: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> NDArray[Any]:
    """The array of a TENSOR object; `shape` may leave dimensions open with None. Raises ContractError."""
    part = _object(raw, where)
    if part.get("dtype") != np.dtype(dtype).name:
        _refuse(where, f"has dtype {part.get('dtype')!r}, expected {np.dtype(dtype).name!r}")
    given = part.get("shape")
    if (
        not isinstance(given, list)
        or len(given) != len(shape)
        or any(
            type(n) is not int or n < 0 or (want is not None and n != want)
            for n, want in zip(given, shape, strict=True)
        )
    ):
        _refuse(where, f"has shape {given!r}, expected {list(shape)!r}")
    try:
        data = base64.b64decode(_text(part.get("base64"), where), validate=True)
    except binascii.Error:
        _refuse(where, "is not base64")
    if len(data) != math.prod(given) * np.dtype(dtype).itemsize:
        _refuse(where, "has another number of bytes than its shape")
    array = np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(given)
    if not np.isfinite(array).all():
        _refuse(where, "holds values that are not finite")
    return array


def _refuse(where: str, why: str) -> NoReturn:
    raise ContractError(f"contract: {where} {why}")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(where, "is missing" if value is None else "is not an object")
    return value


def _list(part: dict[str, Any], key: str) -> list[Any]:
    value = part.get(key)
    if not isinstance(value, list):
        _refuse(key, "is missing" if value is None else "is not a list")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        _refuse(where, "is not a text")
    return value


def _finite(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(where, f"is {value!r}, not a number")
    return value


def _number(part: dict[str, Any], key: str, where: str) -> float:
    return float(_finite(part.get(key), f"{where}.{key}"))


def _integer(part: dict[str, Any], key: str, where: str, *, least: int) -> int:
    value = part.get(key)
    if type(value) is not int or value < least:
        _refuse(f"{where}.{key}", f"is {value!r}, not an integer of at least {least}")
    return value
