"""The document that `/predict` answers: a result for each image, or the reason that there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.images import EncodedImage
from ..core.policy import APPLIED
from ..errors import problem
from ..monitoring.request import ObservedRequest
from ..service.outcome import Outcome
from .disclosure import disclosed
from .query import Query
from .schemas import results
from .withheld import withheld


def document(
    request: ObservedRequest,
    query: Query,
    images: Sequence[EncodedImage],
    names: Sequence[str | None],
    outcome: Outcome,
    prior: float,
) -> dict[str, Any]:
    """The answer.

    Args:
        request: its caller is told no more than it may learn.
        query: what it asks for.
        images: all of its images.
        names: of their files, None where there is none.
        outcome: of those that could be decoded.
        prior: share of attacked images.

    Raises:
        InvalidQuery: more classes are asked for than there are.
        ImageRejected, or why an image could not be decoded: no image is left.
    """
    decoded = [image.decoded for image in images if image.decoded is not None]
    told = results(outcome, decoded, query, prior)
    if outcome.policy in APPLIED:
        places = [place for place, image in enumerate(images) if image.decoded is not None]
        told = withheld(outcome, told, places, request.id)
    told = disclosed(told, request.caller.answers)
    for place, error in sorted(outcome.refused.items()):
        told.insert(place, {"problem": problem(error, request.id)})
    model, signals = outcome.model, outcome.signals
    answer: dict[str, Any] = {
        "request_id": request.id,
        "model": {"name": model.name, "version": str(model.version), "sha256": model.sha256},
        "mode": outcome.mode,
    }
    if outcome.policy in APPLIED:
        answer["policy"] = outcome.policy
    if signals.cached:
        answer["cached"] = True
    answer["results"] = [one if name is None else {"file": name, **one} for name, one in zip(names, told, strict=True)]
    answer["timing_ms"] = {
        "decode": round(1000 * signals.decode_seconds, 3),
        "queue": round(1000 * signals.queue_seconds, 3),
        "inference": round(1000 * signals.inference_seconds, 3),
        "total": round(1000 * request.seconds, 3),
    }
    return answer
