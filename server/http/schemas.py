"""The answer of /predict.

The answer is built as plain dicts, for speed; the pydantic models describe it in /docs, and the tests hold every
answer against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ..core.answers import Level
from ..core.contract import OmegaSlice
from ..core.images import DecodedImage
from ..core.modes import Mode
from ..core.policy import Decision, Policy
from ..core.verdict import Verdict, ranked, shown, significant
from ..service.outcome import Outcome
from .query import Query, SignalsLevel


def results(outcome: Outcome, decoded: Sequence[DecodedImage], query: Query, prior: float) -> list[dict[str, Any]]:
    """The `results` of the answer. Raises InvalidQuery where more classes are asked for than there are."""
    contract, signals = outcome.model.contract, outcome.signals
    labels = contract.labels
    classes = query.classes(len(labels))
    answers = []
    for n, (judged, image) in enumerate(zip(outcome.judgements, decoded, strict=True)):
        probability, calibrated = judged.probability, judged.why is None
        thresholds = judged.applied.thresholds
        suspicious, adversarial = thresholds.suspicious, thresholds.adversarial
        answer: dict[str, Any] = {
            "predictions": [
                {"class_id": k, "label": labels[k], "probability": significant(share)}
                for k, share in ranked(signals.logits[n], classes)
            ],
            "adversarial": {
                "score": shown(judged.score, thresholds),
                "verdict": judged.verdict,
                "thresholds": {"suspicious": suspicious.score, "adversarial": adversarial.score},
                "target_fpr": {"suspicious": suspicious.fpr, "adversarial": adversarial.fpr},
                "probability": None if probability is None else significant(probability),
                "prior": prior,
                "calibrated": calibrated,
                "why": judged.why,
                "domain": judged.applied.name if calibrated else None,
            },
            "image": {
                "format": image.format,
                "width": image.width,
                "height": image.height,
                "resized": image.resized,
            },
        }
        if outcome.repeats is not None:
            repeats = outcome.repeats[n]
            answer["query_guard"] = {"similar_queries": repeats.similar, "repeated": repeats.repeated}
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


class Shape(BaseModel):
    """Of an answer: no field more, none less."""

    model_config = ConfigDict(extra="forbid")


class ModelId(Shape):
    name: str
    version: str
    sha256: str


class Class(Shape):
    class_id: int
    label: str
    probability: float


class Points(Shape):
    """One value at each operating point."""

    suspicious: float
    adversarial: float


class Adversarial(Shape):
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


class ImageFacts(Shape):
    format: Literal["PNG", "JPEG", "WEBP"]
    width: int
    height: int
    resized: bool


class BlockSignals(Shape):
    name: str
    mean: float
    std: float


class ConvolutionSignals(Shape):
    name: str
    values: list[float]


class OmegaSignals(Shape):
    """The regulation signals of Eq. 21."""

    blocks: list[BlockSignals]
    convolutions: list[ConvolutionSignals] | None = None


class QueryGuard(Shape):
    """How many different images nearly the same as this one its client has sent lately, and whether too many."""

    similar_queries: int
    repeated: bool


class Named(Shape):
    """`file` is the name that the image was sent under, its last part; left out where there is none."""

    file: str | None = None


class Result(Named):
    """What is said about one image. `predictions` are empty where the policy abstains; `decision` is that of a policy
    that is carried out.
    """

    predictions: list[Class]
    adversarial: Adversarial
    image: ImageFacts
    query_guard: QueryGuard | None = None
    signals: OmegaSignals | None = None
    decision: Decision | None = None


class Problem(Shape):
    """An error, `application/problem+json` (RFC 9457). `image` is the place of the offending image, from 0."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    image: int | None = None


class Refused(Named):
    """In place of a result, where others of the request are answered: the image cannot be decoded, or a policy rejects
    it, which is then its `decision`.
    """

    problem: Problem
    decision: Decision | None = None


class ClassInLevels(Shape):
    class_id: int
    label: str
    probability_level: Level


class AdversarialInLevels(Shape):
    """`Adversarial` with levels in the place of `score` and `probability`."""

    score_level: Level
    probability_level: Level | None
    verdict: Verdict
    thresholds: Points
    target_fpr: Points
    prior: float
    calibrated: bool
    why: str | None
    domain: str | None


class ResultInLevels(Named):
    """A result for callers whose answers are `bands`."""

    predictions: list[ClassInLevels]
    adversarial: AdversarialInLevels
    image: ImageFacts
    query_guard: QueryGuard | None = None
    decision: Decision | None = None


class ClassAlone(Shape):
    class_id: int
    label: str


class VerdictAlone(Shape):
    verdict: Verdict
    calibrated: bool
    why: str | None


class ResultOfVerdict(Named):
    """A result for callers whose answers are `verdict`: the most probable class and the verdict."""

    predictions: list[ClassAlone]
    adversarial: VerdictAlone
    image: ImageFacts
    query_guard: QueryGuard | None = None
    decision: Decision | None = None


class Base64Image(Shape):
    """A PNG, JPEG or WebP file as base64 (RFC 4648, no line breaks), and its name."""

    base64: str
    name: str | None = None


class Base64Images(Shape):
    """The body of /predict as JSON."""

    image: str | Base64Image | list[str | Base64Image]


class Timing(Shape):
    """Milliseconds; `total` runs from the request's headers to its answer."""

    decode: float
    queue: float
    inference: float
    total: float


class Answer(Shape):
    """What /predict answers; `mode` is the operating mode in which the model did.

    `policy` is named where it may withhold something: `abstain` or `reject`. `cached` is there, and true, where the
    answer cache had the model's outputs; `timing_ms` is then 0 but for `total`.
    """

    request_id: str
    model: ModelId
    mode: Mode
    policy: Policy | None = None
    cached: bool | None = None
    results: list[Result | ResultInLevels | ResultOfVerdict | Refused]
    timing_ms: Timing
