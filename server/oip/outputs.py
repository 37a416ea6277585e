"""The outputs that a request may name: what each one is, and which of them a caller is told, see `core.answers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..access.caller import Caller
from ..core.answers import Answers, level
from ..core.contract import Contract
from ..core.engine import OUTPUTS, Model
from ..core.policy import APPLIED
from ..core.verdict import Judgement
from ..errors import Forbidden
from ..service.outcome import Outcome
from .tensors import Output, Values


class _Kind(NamedTuple):
    """One output: its datatype, its shape behind the number of images, and its values [N, *shape]."""

    datatype: str
    shape: Callable[[Contract], list[int]]
    values: Callable[[Outcome], Values]


def _logits(outcome: Outcome) -> Values:
    values, abstained = outcome.signals.logits, outcome.withheld("abstain")
    if abstained:
        values = values.copy()
        values[abstained] = np.nan
    return values


def _labels(outcome: Outcome) -> Values:
    labels, best = outcome.model.contract.labels, outcome.signals.logits.argmax(axis=1).tolist()
    abstained = outcome.withheld("abstain")
    return [b"" if row in abstained else labels[k].encode() for row, k in enumerate(best)]


def _decisions(outcome: Outcome) -> Values:
    # Nobody can tell from an answer that they are observed.
    decisions = outcome.decisions if outcome.policy in APPLIED else ["answered"] * len(outcome.decisions)
    return [decision.encode() for decision in decisions]


def _thresholds(outcome: Outcome) -> Values:
    applied = (judged.applied.thresholds for judged in outcome.judgements)
    return np.array([(points.suspicious.score, points.adversarial.score) for points in applied], np.float64)


def _text(text: Callable[[Judgement], str]) -> _Kind:
    return _Kind("BYTES", lambda _: [], lambda outcome: [text(judged).encode() for judged in outcome.judgements])


_KINDS = {
    "logits": _Kind("FP32", lambda contract: [len(contract.labels)], _logits),
    "p_type": _Kind("FP32", lambda _: [2], lambda outcome: outcome.signals.p_type),
    "omega": _Kind("FP32", lambda contract: [contract.omega_channels], lambda outcome: outcome.signals.omega),
    "score": _Kind("FP32", lambda _: [], lambda outcome: outcome.signals.p_type[:, 0]),
    "verdict": _text(lambda judged: judged.verdict),
    "label": _Kind("BYTES", lambda _: [], _labels),
    "calibrated": _Kind(
        "BOOL", lambda _: [], lambda outcome: np.array([judged.calibrated for judged in outcome.judgements], np.bool_)
    ),
    "probability": _Kind(
        "FP32",
        lambda _: [],
        lambda outcome: np.array([judged.probability for judged in outcome.judgements], np.float32),
    ),
    "domain": _text(lambda judged: judged.applied.name if judged.calibrated else ""),
    "why": _text(lambda judged: judged.why or ""),
    "thresholds": _Kind("FP64", lambda _: [2], _thresholds),  # in double precision, as the verdict compares them
    "decision": _Kind("BYTES", lambda _: [], _decisions),
    "score_level": _text(lambda judged: level(judged.score)),
    "probability_level": _text(lambda judged: level(judged.probability or 0.0)),
}
SIGNALS = OUTPUTS  # the model's own; they need a scope, and come where a request names none
ON_REQUEST = tuple(name for name in _KINDS if name not in SIGNALS)
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


def maps_scores(model: Model) -> bool:
    """Whether its contract says what a score means as a probability."""
    return all(domain.score_map is not None for domain in model.contract.domains)


def specifications(model: Model, caller: Caller) -> list[tuple[str, str, list[int]]]:
    """(name, datatype, shape) of the outputs that the caller is told; -1 is the number of images."""
    mapped = maps_scores(model)
    return [
        (name, kind.datatype, [-1, *kind.shape(model.contract)])
        for name, kind in _KINDS.items()
        if is_told(name, caller) and (mapped or name not in MAPPED)
    ]


def output_of(name: str, outcome: Outcome) -> Output:
    """One output of an answer."""
    kind = _KINDS[name]
    shape = (len(outcome.judgements), *kind.shape(outcome.model.contract))
    return Output(name, kind.datatype, shape, kind.values(outcome))
