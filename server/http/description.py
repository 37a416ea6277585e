"""What `GET /model` answers: the part of a model's contract that people and programs decide by."""

from __future__ import annotations

from typing import Any, Literal

from ..core.contract import MixingKind, Precision
from ..core.domains import Domain
from ..core.engine import Model
from ..core.modes import Mode
from .schemas import Points, Shape

Interval = tuple[float, float, float]


def described(model: Model, prior: float, mode: Mode) -> dict[str, Any]:
    """A `Description` as plain values; `prior` and default `mode` are the server's."""
    contract = model.contract
    return {
        "name": model.name,
        "version": str(model.version),
        "sha256": model.sha256,
        "labels": list(contract.labels),
        "modes": list(contract.modes),
        "default_mode": mode,
        "mixing": {
            "kind": contract.mixing.kind,
            "limit": contract.mixing.limit,
            "temperature": contract.mixing.temperature,
        },
        "precision": contract.precision,
        "prior": prior,
        "domains": [_domain(domain) for domain in contract.domains],
        "card": contract.card,
    }


def _domain(domain: Domain) -> dict[str, Any]:
    suspicious, adversarial = domain.thresholds.suspicious, domain.thresholds.adversarial
    ranges = None if domain.ranges is None else {name: list(ends) for name, ends in domain.ranges.items()}
    return {
        "name": domain.name,
        "about": domain.about,
        "kinds": list(domain.kinds),
        "images": domain.images,
        "ranges": ranges,
        "thresholds": {"suspicious": suspicious.score, "adversarial": adversarial.score},
        "target_fpr": {"suspicious": suspicious.fpr, "adversarial": adversarial.fpr},
        "rates": {"fpr_pristine": None, "fpr_worst": None, "tpr_t0": {}, **domain.rates},
    }


class Rate(Shape):
    """At each operating point [value, low, high]: the share of images over the threshold and its 95 % interval."""

    suspicious: Interval
    adversarial: Interval


class WorstRate(Rate):
    """Of the kind of images, and its strength, of which most are flagged."""

    kind: str
    strength: int


class Rates(Shape):
    """What was measured at a domain's thresholds; null or left out where it was not.

    `fpr_pristine` and `fpr_worst` are shares of unattacked images; `tpr_t0` are shares of images attacked at T0, by the
    eps of the attack in 255ths.
    """

    fpr_pristine: Rate | None
    fpr_worst: WorstRate | None
    tpr_t0: dict[str, Rate]


class DomainFacts(Shape):
    """A kind of images and its thresholds.

    `ranges` has [least, largest] of each pixel statistic, null in contracts of schema 1, whose only domain holds what
    was neither scaled nor stored with loss. `images` of `kinds` were scored to set the thresholds.
    """

    name: str
    about: str
    kinds: list[str]
    images: int
    ranges: dict[str, tuple[float, float]] | None
    thresholds: Points
    target_fpr: Points
    rates: Rates


class Figure(Shape):
    """One figure of the audit with its 95 % interval."""

    name: str
    title: str
    value: float
    low: float
    high: float
    images: int
    unit: Literal["share", "auroc"]


class Card(Shape):
    """What the audit of the checkpoint found."""

    title: str
    statement: str
    checkpoint_sha256: str
    date: str
    figures: list[Figure]


class Mixed(Shape):
    """How P_type joins the branches in mode auto: it weights their batch norms, or their class probabilities.

    Then the natural branch has at most `limit` of the weight, and `temperature` multiplies the logits of the other one;
    both are null where batch norms are mixed.
    """

    kind: MixingKind
    limit: float | None
    temperature: float | None


class Description(Shape):
    """A model as it answers. `domains` are in the order in which they are tried; `card` is null without an audit.

    `modes` are its operating modes; requests that name none are answered in `default_mode`.
    """

    name: str
    version: str
    sha256: str
    labels: list[str]
    modes: list[Mode]
    default_mode: Mode
    mixing: Mixed
    precision: Precision
    prior: float
    domains: list[DomainFacts]
    card: Card | None
