"""What of the results of /predict a caller is told: levels or verdicts in place of scores; see `core.answers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..access.caller import Caller
from ..core.answers import Answers, level
from ..errors import Forbidden
from .query import Query

# Of `adversarial`, as it is; whatever is not named here or made below is not told.
_WITH_LEVELS = ("verdict", "thresholds", "target_fpr", "prior", "calibrated", "why", "domain")
_WITH_VERDICTS = ("verdict", "calibrated", "why")
_BESIDE = ("image", "query_guard", "decision", "problem")


def check(query: Query, caller: Caller) -> None:
    """Raises Unauthorized, Forbidden where more is asked for than the caller is told."""
    if query.signals != "none":
        caller.require_signals()
    if caller.answers == "verdict" and query.top_k is not None and query.top_k > 1:
        raise Forbidden("only the most probable class is told to this caller, whose answers are 'verdict'")


def disclosed(results: list[dict[str, Any]], answers: Answers) -> list[dict[str, Any]]:
    """`results` as somebody with these `answers` is told them."""
    if answers == "exact":
        return results
    return [_levels(result) if answers == "bands" else _verdict(result) for result in results]


def _levels(result: Mapping[str, Any]) -> dict[str, Any]:
    left = _of(result, _BESIDE)
    if "adversarial" in result:
        given = result["adversarial"]
        probability = given["probability"]
        left["predictions"] = [
            {**_of(named, ("class_id", "label")), "probability_level": level(named["probability"])}
            for named in result["predictions"]
        ]
        left["adversarial"] = {
            "score_level": level(given["score"]),
            "probability_level": None if probability is None else level(probability),
            **_of(given, _WITH_LEVELS),
        }
    return left


def _verdict(result: Mapping[str, Any]) -> dict[str, Any]:
    left = _of(result, _BESIDE)
    if "adversarial" in result:
        left["predictions"] = [_of(named, ("class_id", "label")) for named in result["predictions"][:1]]
        left["adversarial"] = _of(result["adversarial"], _WITH_VERDICTS)
    return left


def _of(given: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}
