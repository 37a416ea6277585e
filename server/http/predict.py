"""The document that `/predict` answers: a result for each image, or the reason that there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.images import EncodedImage
from ..core.policy import APPLIED
from ..errors import problem
from ..monitoring.request import ObservedRequest
from ..outcome import Outcome
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
    decoded = {place: image.decoded for place, image in enumerate(images) if image.decoded is not None}
    answers = withheld(outcome, results(outcome, list(decoded.values()), query, prior), list(decoded), request.id)
    found = dict(zip(decoded, disclosed(answers, request.caller.answers), strict=True))
    found |= {place: {"problem": problem(error, request.id)} for place, error in outcome.refused.items()}
    model, signals = outcome.model, outcome.signals
    return {
        "request_id": request.id,
        "model": {"name": model.name, "version": str(model.version), "sha256": model.sha256},
        "mode": outcome.mode,
        **({"policy": outcome.policy} if outcome.policy in APPLIED else {}),
        **({"cached": True} if signals.cached else {}),
        "results": [
            found[place] if name is None else {"file": name, **found[place]} for place, name in enumerate(names)
        ],
        "timing_ms": {
            "decode": round(1000 * signals.decode_seconds, 3),
            "queue": round(1000 * signals.queue_seconds, 3),
            "inference": round(1000 * signals.inference_seconds, 3),
            "total": round(1000 * request.seconds, 3),
        },
    }
