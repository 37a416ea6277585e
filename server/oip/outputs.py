"""Which outputs there are, and which of them a caller is told: see `core.answers`."""

from __future__ import annotations

from collections.abc import Sequence

from ..access.caller import Caller
from ..core.answers import Answers
from ..core.engine import OUTPUTS
from ..errors import Forbidden

SIGNALS = OUTPUTS  # the model's own; they need a scope, and come where a request names none
ON_REQUEST = (
    *("score", "verdict", "label", "calibrated", "probability", "domain", "why", "thresholds"),
    *("decision", "score_level", "probability_level"),
)
MAPPED = frozenset({"probability", "probability_level"})  # of models whose contract maps scores

_OF_VERDICT = frozenset({"verdict", "label", "calibrated", "why", "decision"})
_OF_LEVELS = _OF_VERDICT | {"score_level", "probability_level", "domain", "thresholds"}
_TOLD: dict[Answers, frozenset[str]] = {
    "exact": frozenset(ON_REQUEST),
    "bands": _OF_LEVELS,
    "verdict": _OF_VERDICT,
}
_UNNAMED: dict[Answers, tuple[str, ...]] = {
    "exact": ("score", "verdict", "label"),
    "bands": ("score_level", "verdict", "label"),
    "verdict": ("verdict", "label"),
}


def is_told(name: str, caller: Caller) -> bool:
    """Whether the caller may have this output."""
    return caller.sees_signals if name in SIGNALS else name in _TOLD[caller.answers]


def check(names: Sequence[str], caller: Caller) -> None:
    """Raises Unauthorized, Forbidden where an output is none for this caller."""
    for name in names:
        if not is_told(name, caller):
            if name in SIGNALS:
                caller.require("signals")
            raise Forbidden(f"the output {name!r} is not told to this caller, whose answers are {caller.answers!r}")


def unnamed(caller: Caller) -> tuple[str, ...]:
    """The outputs that this caller gets where a request names none."""
    return SIGNALS if caller.sees_signals else _UNNAMED[caller.answers]
