"""Public request and response shapes: the query of /predict, its answer, and how both stand in the API's document.

The answer is built as plain dicts, for speed; the pydantic models describe it in /docs, and the tests hold every
answer against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

from server.contract import OmegaSlice
from server.engine import Model, Signals
from server.errors import EngineFault, InvalidQuery
from server.images import Decoded
from server.verdict import Verdict, judge, probabilities, shown, significant, top

SignalsLevel = Literal["none", "summary", "all"]
DEFAULT_TOP_K = 5
LONGEST_QUERY = 1024


@dataclass(frozen=True, slots=True)
class Query:
    """top_k: how many classes to name; signals: how much of omega to add."""

    top_k: int = DEFAULT_TOP_K
    signals: SignalsLevel = "none"


def parse_query(raw: bytes, classes: int) -> Query:
    """The query string of /predict. Raises InvalidQuery for unknown names, repeated names and unknown values."""
    if not raw:
        return Query(min(DEFAULT_TOP_K, classes))
    if len(raw) > LONGEST_QUERY:
        raise InvalidQuery(f"the query is longer than {LONGEST_QUERY} bytes")
    given: dict[str, str] = {}
    for name, value in parse_qsl(raw.decode("latin-1"), keep_blank_values=True):
        if name not in ("top_k", "signals"):
            raise InvalidQuery(f"unknown query parameter {name[:40]!r}; there are 'top_k' and 'signals'")
        if name in given:
            raise InvalidQuery(f"the query parameter {name!r} is given twice")
        given[name] = value
    text = given.get("top_k", str(min(DEFAULT_TOP_K, classes)))
    if not (text.isascii() and text.isdigit() and len(text) < 7 and 1 <= int(text) <= classes):
        raise InvalidQuery(f"top_k must be a number from 1 to {classes}, not {text[:40]!r}")
    level = given.get("signals", "none")
    for known in get_args(SignalsLevel):
        if level == known:
            return Query(int(text), known)
    raise InvalidQuery(f"signals must be one of {', '.join(get_args(SignalsLevel))}, not {level[:40]!r}")


def results(
    model: Model, signals: Signals, decoded: Sequence[Decoded], query: Query
) -> tuple[list[dict[str, Any]], list[tuple[Verdict, float]]]:
    """The `results` of the answer, and of each image the verdict with its unrounded score.

    Raises:
        EngineFault: the engine's answer is not finite.
    """
    if not signals.finite():
        raise EngineFault("the model gave an answer that is not finite")
    labels, thresholds = model.contract.labels, model.contract.thresholds
    limits = {"suspicious": thresholds.suspicious.score, "adversarial": thresholds.adversarial.score}
    rates = {"suspicious": thresholds.suspicious.fpr, "adversarial": thresholds.adversarial.fpr}
    answers, judged = [], []
    likely = probabilities(signals.logits)
    for n, (score, picture) in enumerate(zip(signals.p_type[:, 0].tolist(), decoded, strict=True)):
        row = likely[n]
        verdict = judge(score, thresholds)
        judged.append((verdict, score))
        answer: dict[str, Any] = {
            "predictions": [
                {"class_id": k, "label": labels[k], "probability": significant(row[k])} for k in top(row, query.top_k)
            ],
            "adversarial": {
                "score": shown(score, thresholds),
                "verdict": verdict,
                "thresholds": limits,
                "target_fpr": rates,
                "calibrated": picture.calibrated,
            },
            "image": {
                "format": picture.format,
                "width": picture.width,
                "height": picture.height,
                "resized": picture.resized,
            },
        }
        if query.signals != "none":
            answer["signals"] = omega_signals(signals.omega[n], model.contract.omega, query.signals)
        answers.append(answer)
    return answers, judged


def omega_signals(omega: NDArray[np.float32], layout: Sequence[OmegaSlice], level: SignalsLevel) -> dict[str, Any]:
    """omega [C] as mean and standard deviation of each block, with 'all' also each convolution's values."""
    blocks: dict[str, list[NDArray[np.float32]]] = {}
    for part in layout:
        block = part.name.rpartition(".")[0] or part.name
        blocks.setdefault(block, []).append(omega[part.offset : part.offset + part.length])
    told: dict[str, Any] = {
        "blocks": [
            {"name": name, "mean": significant(values.mean()), "std": significant(values.std())}
            for name, values in ((name, np.concatenate(parts).astype(np.float64)) for name, parts in blocks.items())
        ]
    }
    if level == "all":
        told["convolutions"] = [
            {
                "name": part.name,
                "values": [significant(value) for value in omega[part.offset : part.offset + part.length].tolist()],
            }
            for part in layout
        ]
    return told


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
    """`score` is P(adversarial); `calibrated` is false where the thresholds do not speak for the input."""

    score: float
    verdict: Verdict
    thresholds: Points
    target_fpr: Points
    calibrated: bool


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


PROBLEMS = {
    400: "The body is not what its headers say.",
    405: "Only POST is answered here.",
    406: "The answer is JSON, which the Accept header does not allow.",
    413: "The body, an image, or the number of images is too large.",
    415: "Neither PNG, JPEG nor WebP, or an encoded body.",
    422: "No image, an image that cannot be decoded, or an unknown query value.",
    503: "The queue is full or the model is not ready; try again after `Retry-After` seconds.",
}


def document_predict(openapi: dict[str, Any]) -> dict[str, Any]:
    """`openapi` with /predict written into it; its route is not FastAPI's, for speed."""
    _, shapes = models_json_schema(
        [(Answer, "serialization"), (Problem, "serialization")], ref_template="#/components/schemas/{model}"
    )
    openapi.setdefault("components", {}).setdefault("schemas", {}).update(shapes["$defs"])
    binary = {"schema": {"type": "string", "format": "binary"}}
    files = {"oneOf": [binary["schema"], {"type": "array", "items": binary["schema"]}]}
    form = {"type": "object", "required": ["image"], "properties": {"image": files}}
    answers: dict[str, Any] = {
        "200": {
            "description": "One result for each image, in their order.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}},
        }
    }
    for status, description in PROBLEMS.items():
        answers[str(status)] = {
            "description": description,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    openapi.setdefault("paths", {})["/predict"] = {
        "post": {
            "summary": "Which class, and was the picture tampered with?",
            "operationId": "predict",
            "parameters": [
                {
                    "name": "top_k",
                    "in": "query",
                    "description": "How many classes to name, most probable first.",
                    "schema": {"type": "integer", "minimum": 1, "default": DEFAULT_TOP_K},
                },
                {
                    "name": "signals",
                    "in": "query",
                    "description": "Add omega: mean and std of each block, or all values too.",
                    "schema": {"type": "string", "enum": list(get_args(SignalsLevel)), "default": "none"},
                },
                {
                    "name": "X-Request-ID",
                    "in": "header",
                    "description": "Taken over if it has 1 to 64 of the characters A-Z a-z 0-9 . _ -",
                    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
                },
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {"schema": form},
                    "image/png": binary,
                    "image/jpeg": binary,
                    "image/webp": binary,
                },
            },
            "responses": answers,
        }
    }
    return openapi
