"""A model file as its clients meet it: read with onnxruntime, answered as the server answers.

The audit of a file (`export.audit`) judges what is served, so this reads the contract inside the file, of schema 1 to
3, and rounds as `/predict` does. It needs neither training nor the server, so that whoever has nothing but a
`model.onnx` can run it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from domain.statistics import STATISTICS, measure, outside

from ..repository.layout import METADATA_KEY

SCHEMAS = (1, 2, 3)
OUTPUTS = ("logits", "p_type", "omega")
OUTSIDE = -1  # in place of a domain's number: no domain's ranges hold the image

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class ModelFileError(ValueError):
    """The file cannot be audited, and why in one line."""


@dataclass(frozen=True)
class Domain:
    """Images that thresholds speak for: those whose statistics lie in `ranges`, all where there are none."""

    name: str
    ranges: Mapping[str, tuple[float, float]]
    suspicious: float
    adversarial: float


@dataclass(frozen=True)
class Golden:
    """Inputs uint8 [M,3,S,S], the outputs that were right where the model was made, and how far others may be off."""

    image: Pixels
    outputs: Mapping[str, npt.NDArray[np.float32]]
    tolerance: Mapping[str, float]


class Served(NamedTuple):
    """What clients are told about n images.

    Attributes:
        logits: float64 [n,K]: logarithms of the probabilities at six significant digits.
        score: float64 [n]: P(adversarial) at six significant digits, or in full where rounding would change a verdict.
        suspicious, adversarial: float64 [n]: the thresholds that were applied.
        domain: int64 [n]: number of the domain that they belong to, or OUTSIDE: the last domain's thresholds then.
    """

    logits: Floats
    score: Floats
    suspicious: Floats
    adversarial: Floats
    domain: Counts

    def of(self, chosen: npt.NDArray[np.bool_]) -> Served:
        """The answers about the images that are chosen, bool [n]."""
        return Served(*(getattr(self, name)[chosen] for name in self._fields))


class ModelFile:
    """A model and its contract.

    Args:
        path: a `model.onnx` of export.onnx.
        threads: of onnxruntime; 0 takes as many as there are cores.
        batch_size: images run at once; bounds memory.

    Raises:
        ModelFileError: no such file, no ONNX model, no contract, a contract of another schema or a broken one.
    """

    def __init__(self, path: Path, *, threads: int = 0, batch_size: int = 256) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None
        self.path, self.sha256, self.batch_size = path, hashlib.sha256(data).hexdigest(), batch_size
        self._session = _session(path, data, threads)
        document = _contract(path, self._session)
        try:
            self.labels = tuple(str(label) for label in document["labels"])
            self.size = int(document["preprocessing"]["size"])
            self.domains = _domains(document)
            self.golden = _golden(document["golden"], self.size)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ModelFileError(f"the contract in {path} is broken: {reason}") from None
        have = {output.name: output.shape[1:] for output in self._session.get_outputs()}
        for name, width in (
            ("logits", len(self.labels)),
            ("p_type", 2),
            ("omega", self.golden.outputs["omega"].shape[1]),
        ):
            if have.get(name) != [width]:
                raise ModelFileError(f"{path} has no output {name} of width {width}, which its contract tells")

    def run(self, images: Pixels) -> dict[str, npt.NDArray[np.float32]]:
        """The outputs as they leave the engine, for uint8 [N,3,S,S]."""
        parts = [
            self._session.run(OUTPUTS, {"image": images[start : start + self.batch_size]})
            for start in range(0, len(images), self.batch_size)
        ]
        return {name: np.concatenate([part[n] for part in parts]) for n, name in enumerate(OUTPUTS)}

    def serve(self, images: Pixels) -> Served:
        """What a client is told about uint8 [N,3,S,S].

        Raises:
            ModelFileError: an output is not finite, which a server refuses to answer with.
        """
        outputs = self.run(images)
        logits, score = outputs["logits"], outputs["p_type"][:, 0].astype(np.float64)
        if not (np.isfinite(logits).all() and np.isfinite(score).all()):
            raise ModelFileError(f"{self.path} answers with numbers that are not finite")
        exponent = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
        likely = significant(exponent / exponent.sum(axis=1, keepdims=True))
        number = self.domain_of(images)
        suspicious, adversarial = (
            np.array([getattr(domain, name) for domain in self.domains])[number]  # OUTSIDE is the last one
            for name in ("suspicious", "adversarial")
        )
        rounded = significant(score)
        crosses = ((rounded > suspicious) != (score > suspicious)) | ((rounded > adversarial) != (score > adversarial))
        shown = np.where(crosses, score, rounded)
        return Served(np.log(np.maximum(likely, 1e-300)), shown, suspicious, adversarial, number)

    @property
    def has_ranges(self) -> bool:
        """Whether an image can lie outside the domains."""
        return any(domain.ranges for domain in self.domains)

    def domain_of(self, images: Pixels) -> Counts:
        """The first domain whose ranges hold each image, or OUTSIDE: int64 [N]."""
        if not self.has_ranges:
            return np.zeros(len(images), np.int64)
        found = np.full(len(images), OUTSIDE, np.int64)
        for n, image in enumerate(images):
            statistics = measure(image)
            inside = (k for k, domain in enumerate(self.domains) if outside(statistics, domain.ranges) is None)
            found[n] = next(inside, OUTSIDE)
        return found


def _session(path: Path, data: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what is wrong is told once, by the exception
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no other base
        first = str(error).strip().splitlines()[0]
        raise ModelFileError(f"{path} is not a model that onnxruntime can run: {first}") from None


def _contract(path: Path, session: ort.InferenceSession) -> Mapping[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ModelFileError(f"{path} carries no contract ({METADATA_KEY}): it was not made by export.onnx")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"the contract in {path} is not JSON: {error}") from None
    schema = document.get("schema_version") if isinstance(document, dict) else None
    if schema not in SCHEMAS:
        known = f"{SCHEMAS[0]} to {SCHEMAS[-1]}"
        raise ModelFileError(f"the contract in {path} has schema {schema!r}; this program reads {known}")
    return dict(document)


def significant(values: Floats) -> Floats:
    """Values at six significant digits, rounded as JSON answers are."""
    return np.array([float(f"{value:.6g}") for value in values.ravel().tolist()]).reshape(values.shape)


def _domains(document: Mapping[str, Any]) -> tuple[Domain, ...]:
    """Schema 1 knows one domain, of all images, which is called what it was calibrated on."""
    alone = {"name": "pristine", "ranges": {}, "thresholds": document["thresholds"]}
    domains = []
    for part in document["domains"] if document["schema_version"] > 1 else [alone]:
        points = [float(part["thresholds"][point]["score"]) for point in ("suspicious", "adversarial")]
        if not 0 <= points[0] <= points[1] <= 1:  # nor is a NaN, over which no score would be flagged
            raise ValueError(f"the thresholds of domain {part['name']!r} are {points}, which do not rise from 0 to 1")
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in part["ranges"].items()}
        if unknown := ranges.keys() - set(STATISTICS):
            raise ValueError(f"domain {part['name']!r} names statistics that are unknown: {', '.join(sorted(unknown))}")
        for name, (low, high) in ranges.items():
            if not -math.inf < low <= high < math.inf:
                raise ValueError(f"the range of {name} in domain {part['name']!r} is [{low}, {high}]")
        domains.append(Domain(str(part["name"]), ranges, *points))
    if not domains:
        raise ValueError("there is no domain")
    if len({domain.name for domain in domains}) < len(domains):  # the report counts images by name
        raise ValueError("two domains have one name")
    return tuple(domains)


def _golden(part: Mapping[str, Any], size: int) -> Golden:
    outputs = {name: _tensor(part[name], np.dtype("<f4")) for name in OUTPUTS}
    tolerance = {name: float(part["tolerance"][name]) for name in OUTPUTS}
    image = _tensor(part["image"], np.dtype("u1"))
    if image.shape[1:] != (3, size, size) or not len(image):
        raise ValueError(f"the golden images are {list(image.shape)}, and the model takes [N, 3, {size}, {size}]")
    return Golden(image, outputs, tolerance)


def _tensor(part: Mapping[str, Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.frombuffer(base64.b64decode(part["base64"]), dtype).reshape(part["shape"])
