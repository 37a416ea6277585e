"""What a policy leaves of the results of /predict: no class where it abstains, a problem where it rejects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ImageRejected, problem
from ..service.outcome import Outcome


def withheld(
    outcome: Outcome, answers: list[dict[str, Any]], places: Sequence[int], request_id: str
) -> list[dict[str, Any]]:
    """`answers`, one an image, with the decision on each; of a policy that is carried out.

    Args:
        outcome: of the images that could be decoded.
        answers: its results.
        places: of those images in the request.
        request_id: of the request.

    Raises:
        ImageRejected: no image is left. Where others could not be decoded, what is wrong with the first of those.
    """
    rejected = outcome.withheld("reject")
    if rejected and len(rejected) == len(answers):
        if outcome.refused:
            raise outcome.refused[min(outcome.refused)]
        who = "the image is" if len(answers) == 1 else f"all {len(answers)} images are"
        raise ImageRejected(f"{who} rejected: {outcome.reasons(rejected)}", image=None if len(answers) > 1 else 0)
    for row in rejected:
        error = ImageRejected(f"the image is rejected: {outcome.reasons([row])}", image=places[row])
        answers[row] = {"problem": problem(error, request_id)}
    for row in outcome.withheld("abstain"):
        answers[row]["predictions"] = []
    return [{**answer, "decision": decision} for answer, decision in zip(answers, outcome.decisions, strict=True)]
