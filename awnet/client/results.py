"""What is known of an image once it has been asked about: the answer of `/predict`, typed.

Fields that a server does not send are None, and fields that this client does not know are in `Result.raw`: client and
server may be of different versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import AnswerError, Error, problem_error

NumberOrLevel = float | str  # a number, or its level, such as 'very-low', where the key may not see numbers


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and its probability."""

    class_id: int
    label: str
    probability: NumberOrLevel | None


@dataclass(frozen=True, slots=True)
class Points:
    """One value at each operating point."""

    suspicious: float
    adversarial: float


@dataclass(frozen=True, slots=True)
class BlockSignals:
    """omega (Eq. 21) of one block."""

    name: str
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Signals:
    """omega (Eq. 21): of each block, and with `signals="all"` the values of each convolution."""

    blocks: tuple[BlockSignals, ...]
    convolutions: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class ModelId:
    """The file that answered; `sha256` is that of `model.onnx`."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class QueryGuard:
    """How many nearly identical images this client has sent lately, this one among them, and whether too many."""

    similar_queries: int
    repeated: bool


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds that the server took for all images of the request; `total` is from its headers to the answer."""

    decode: float
    queue: float
    inference: float
    total: float


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one image, or the reason that there is none; docs/api.md defines the terms.

    Attributes:
        name: of the file, where there is one.
        predictions: the most probable classes, most probable first; empty where a policy abstains.
        verdict: `clean`, `suspicious` or `adversarial`.
        score: P(adversarial) as the detector gives it.
        probability: P(attacked) at `prior`; None where the model maps no scores.
        calibrated: whether the thresholds speak for this image; `why` they do not.
        domain: the kind of images whose thresholds were applied.
        thresholds, target_fpr: of the two operating points.
        format, width, height, resized: of the file, as a viewer shows it.
        signals: where they were asked for.
        query_guard: where the server has one and tells of it.
        policy, decision: what the server does with flagged images, and did with this one, where a policy is in force.
        error: what asking for this image alone would raise; then nothing else is known.
        model, mode: which file answered, and how.
        cached: the server's answer cache had what the model said, so that it did not run; then `timing_ms` says
            nothing of the model.
        timing_ms: where the request spent its time.
        request_id: under which the server's log has it.
        raw: the result as the server sent it.
    """

    name: str | None = None
    predictions: tuple[Prediction, ...] = ()
    verdict: str | None = None
    score: NumberOrLevel | None = None
    probability: NumberOrLevel | None = None
    prior: float | None = None
    calibrated: bool | None = None
    why: str | None = None
    domain: str | None = None
    thresholds: Points | None = None
    target_fpr: Points | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    resized: bool | None = None
    signals: Signals | None = None
    query_guard: QueryGuard | None = None
    policy: str | None = None
    decision: str | None = None
    error: Error | None = None
    model: ModelId | None = None
    mode: str | None = None
    cached: bool = False
    timing_ms: Timing | None = None
    request_id: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """There is an answer."""
        return self.error is None

    @property
    def label(self) -> str | None:
        """The most probable class; None without an answer, or where a policy abstains."""
        return self.predictions[0].label if self.predictions else None

    @property
    def confidence(self) -> NumberOrLevel | None:
        """Its probability."""
        return self.predictions[0].probability if self.predictions else None

    @property
    def flagged(self) -> bool:
        """The verdict is `suspicious` or `adversarial`. Where there is none, nobody says that the image is clean."""
        return self.verdict != "clean"


def parse(document: Any, names: Sequence[str | None]) -> list[Result]:
    """The results of an answer of `/predict` to images of these names, in their order. Raises AnswerError."""
    try:
        results, model = document["results"], document["model"]
        common = {
            "model": ModelId(model["name"], model["version"], model["sha256"]),
            "mode": document["mode"],
            "request_id": document["request_id"],
            "policy": document.get("policy"),
            "cached": document.get("cached") is True,
            "timing_ms": _timing(document.get("timing_ms")),
        }
        return [_result(result, name, common) for result, name in zip(results, names, strict=True)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AnswerError(f"the answer is not one of /predict: {error!r}") from error


def _result(result: Mapping[str, Any], name: str | None, common: Mapping[str, Any]) -> Result:
    name = name or result.get("file")
    if "problem" in result:
        error = problem_error(result["problem"])
        return Result(name=name, decision=result.get("decision"), error=error, raw=result, **common)
    judged, image = result["adversarial"], result.get("image") or {}
    return Result(
        name=name,
        predictions=tuple(
            Prediction(given["class_id"], given["label"], _level(given, "probability"))
            for given in result["predictions"]
        ),
        verdict=judged["verdict"],
        score=_level(judged, "score"),
        probability=_level(judged, "probability"),
        prior=judged.get("prior"),
        calibrated=judged.get("calibrated"),
        why=judged.get("why"),
        domain=judged.get("domain"),
        thresholds=_points(judged.get("thresholds")),
        target_fpr=_points(judged.get("target_fpr")),
        format=image.get("format"),
        width=image.get("width"),
        height=image.get("height"),
        resized=image.get("resized"),
        signals=_signals(result.get("signals")),
        query_guard=_query_guard(result.get("query_guard")),
        decision=result.get("decision"),
        raw=result,
        **common,
    )


def _level(given: Mapping[str, Any], name: str) -> NumberOrLevel | None:
    """A number, or for callers who are told levels, the level that it lies in."""
    value: NumberOrLevel | None = given.get(name, given.get(f"{name}_level"))
    return value


def _points(given: Mapping[str, Any] | None) -> Points | None:
    return None if given is None else Points(given["suspicious"], given["adversarial"])


def _query_guard(given: Mapping[str, Any] | None) -> QueryGuard | None:
    return None if given is None else QueryGuard(given["similar_queries"], given["repeated"])


def _timing(given: Mapping[str, Any] | None) -> Timing | None:
    return None if given is None else Timing(given["decode"], given["queue"], given["inference"], given["total"])


def _signals(given: Mapping[str, Any] | None) -> Signals | None:
    if given is None:
        return None
    return Signals(
        tuple(BlockSignals(block["name"], block["mean"], block["std"]) for block in given["blocks"]),
        {part["name"]: tuple(part["values"]) for part in given.get("convolutions") or ()},
    )
