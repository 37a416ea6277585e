"""Public request and response shapes: the query of /predict and its answer.

The answer is built as plain dicts, for speed; the pydantic models describe it in /docs, and the tests hold every
answer against them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ..core.contract import OmegaSlice
from ..core.engine import PRIORITIES, Priority
from ..core.images import DecodedImage
from ..core.verdict import Verdict, probabilities, shown, significant, top
from ..core.version import WHAT, parse_version
from ..errors import InvalidQuery, UnknownModel
from ..service import Outcome

SignalsLevel = Literal["none", "summary", "all"]
DEFAULT_TOP_K = 5
MAX_QUERY_BYTES = 1024
_Word = TypeVar("_Word", bound=str)


@dataclass(frozen=True, slots=True)
class Query:
    """The parsed query of a /predict request.

    Attributes:
        top_k: how many classes to name; None is five, or all where there are fewer.
        signals: how much of omega to add.
        model, version: which one is to answer; None is the default model and its serving version.
        timeout_seconds: how long the client will wait; None is as long as the server allows.
        priority: see `engine.Terms`.
    """

    top_k: int | None = None
    signals: SignalsLevel = "none"
    model: str | None = None
    version: int | None = None
    timeout_seconds: float | None = None
    priority: Priority = "normal"

    def classes(self, known: int) -> int:
        """How many of `known` classes to name. Raises InvalidQuery."""
        if self.top_k is None:
            return min(DEFAULT_TOP_K, known)
        if self.top_k > known:
            raise InvalidQuery(f"top_k must be a number from 1 to {known}, not {self.top_k}")
        return self.top_k


NOTHING_ASKED = Query()
PARAMETERS = ("top_k", "signals", "model", "version", "timeout_ms", "priority")


def parse_query(raw: bytes) -> Query:
    """The query string of /predict.

    Raises:
        InvalidQuery: unknown names, repeated names and unknown values.
        UnknownModel: a version that is none.
    """
    if not raw:
        return NOTHING_ASKED
    if len(raw) > MAX_QUERY_BYTES:
        raise InvalidQuery(f"the query is longer than {MAX_QUERY_BYTES} bytes")
    given: dict[str, str] = {}
    for name, value in parse_qsl(raw.decode("latin-1"), keep_blank_values=True):
        if name not in PARAMETERS:
            raise InvalidQuery(f"unknown query parameter {name[:40]!r}; there are {', '.join(PARAMETERS)}")
        if name in given:
            raise InvalidQuery(f"the query parameter {name!r} is given twice")
        given[name] = value
    milliseconds = _count(given, "timeout_ms")
    return Query(
        top_k=_count(given, "top_k"),
        signals=_one_of(given, "signals", get_args(SignalsLevel), "none"),
        model=given.get("model"),
        version=_version(given.get("version", "latest")),
        timeout_seconds=None if milliseconds is None else milliseconds / 1000,
        priority=_one_of(given, "priority", PRIORITIES, "normal"),
    )


def _count(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise InvalidQuery(f"{name} must be a number from 1 on, not {text[:40]!r}")
    return int(text)


def _version(text: str) -> int | None:
    if text == "latest":
        return None
    version = parse_version(text)
    if version is None:
        raise UnknownModel(f"there is no version {text[:40]!r}: {WHAT}, or 'latest'")
    return version


def _one_of(given: Mapping[str, str], name: str, known: Sequence[_Word], default: _Word) -> _Word:
    text = given.get(name, default)
    for word in known:
        if text == word:
            return word
    raise InvalidQuery(f"{name} must be one of {', '.join(known)}, not {text[:40]!r}")


def results(outcome: Outcome, decoded: Sequence[DecodedImage], query: Query, prior: float) -> list[dict[str, Any]]:
    """The `results` of the answer. Raises InvalidQuery where more classes are asked for than there are."""
    contract, signals = outcome.model.contract, outcome.signals
    labels = contract.labels
    classes = query.classes(len(labels))
    answers = []
    likely = probabilities(signals.logits)
    for n, (judged, image) in enumerate(zip(outcome.judgements, decoded, strict=True)):
        row, probability = likely[n], judged.probability
        thresholds = judged.applied.thresholds
        answer: dict[str, Any] = {
            "predictions": [
                {"class_id": k, "label": labels[k], "probability": significant(row[k])} for k in top(row, classes)
            ],
            "adversarial": {
                "score": shown(judged.score, thresholds),
                "verdict": judged.verdict,
                "thresholds": {
                    "suspicious": thresholds.suspicious.score,
                    "adversarial": thresholds.adversarial.score,
                },
                "target_fpr": {"suspicious": thresholds.suspicious.fpr, "adversarial": thresholds.adversarial.fpr},
                "probability": None if probability is None else significant(probability),
                "prior": prior,
                "calibrated": judged.calibrated,
                "why": judged.why,
                "domain": judged.applied.name if judged.calibrated else None,
            },
            "image": {
                "format": image.format,
                "width": image.width,
                "height": image.height,
                "resized": image.resized,
            },
        }
        if query.signals != "none":
            answer["signals"] = omega_signals(signals.omega[n], contract.omega, query.signals)
        answers.append(answer)
    return answers


def omega_signals(omega: NDArray[np.float32], layout: Sequence[OmegaSlice], level: SignalsLevel) -> dict[str, Any]:
    """omega [C] as mean and standard deviation of each block, with 'all' also each convolution's values."""
    blocks: dict[str, list[NDArray[np.float32]]] = {}
    for part in layout:
        block = part.name.rpartition(".")[0] or part.name
        blocks.setdefault(block, []).append(omega[part.offset : part.offset + part.length])
    shown_omega: dict[str, Any] = {
        "blocks": [
            {"name": name, "mean": significant(values.mean()), "std": significant(values.std())}
            for name, values in ((name, np.concatenate(parts).astype(np.float64)) for name, parts in blocks.items())
        ]
    }
    if level == "all":
        shown_omega["convolutions"] = [
            {
                "name": part.name,
                "values": [significant(value) for value in omega[part.offset : part.offset + part.length].tolist()],
            }
            for part in layout
        ]
    return shown_omega


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelId(_Shape):
    name: str
    version: str
    sha256: str


class Class(_Shape):
    class_id: int
    label: str
    probability: float


class Points(_Shape):
    """One value at each operating point."""

    suspicious: float
    adversarial: float


class Adversarial(_Shape):
    """`score` is P(adversarial) as the model gives it, and the verdict is made of it.

    `probability` is P(attacked) where a share `prior` of all images is attacked, null where the model has no map of
    its scores. `domain` names the calibrated kind of images that this one belongs to; where it belongs to none, it is
    null, `calibrated` is false and `why` says in a few words why the thresholds do not speak for the image.
    """

    score: float
    verdict: Verdict
    thresholds: Points
    target_fpr: Points
    probability: float | None
    prior: float
    calibrated: bool
    why: str | None
    domain: str | None


class ImageFacts(_Shape):
    format: Literal["PNG", "JPEG", "WEBP"]
    width: int
    height: int
    resized: bool


class BlockSignals(_Shape):
    name: str
    mean: float
    std: float


class ConvolutionSignals(_Shape):
    name: str
    values: list[float]


class OmegaSignals(_Shape):
    """The regulation signals of Eq. 21."""

    blocks: list[BlockSignals]
    convolutions: list[ConvolutionSignals] | None = None


class Result(_Shape):
    predictions: list[Class]
    adversarial: Adversarial
    image: ImageFacts
    signals: OmegaSignals | None = None


class Timing(_Shape):
    """Milliseconds; `total` runs from the request's headers to its answer."""

    decode: float
    queue: float
    inference: float
    total: float


class Answer(_Shape):
    """What /predict answers."""

    request_id: str
    model: ModelId
    results: list[Result]
    timing_ms: Timing


class Problem(_Shape):
    """An error, `application/problem+json` (RFC 9457). `image` is the place of the offending image, from 0."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    image: int | None = None
