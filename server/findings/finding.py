"""What is told of an attack: observations, and the findings that they are put together to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from ..core.modes import Mode
from ..core.policy import Decision, Policy
from ..core.verdict import Verdict

Kind = Literal["image", "query-guard", "rate", "detector"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Activity = Literal["create", "update", "close"]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)
MOST_SCORES = 32


class Subject(NamedTuple):
    """Whom and what a finding is about: observations of one subject are one finding.

    Attributes:
        kind: 'image': images over the threshold; 'query-guard': nearly the same image too often; 'rate': more flagged
            images than the threshold stands for; 'detector': golden images that were not answered as they must be.
        client: salted hash of the address, as in the request log; None where it is a key, or nobody in particular.
        key: name of the caller's key.
        model, version, sha256: of the model; empty where it is about no model in particular.
    """

    kind: Kind
    client: str | None = None
    key: str | None = None
    model: str = ""
    version: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """What is known of one flagged image.

    Attributes:
        threshold: the one that the score exceeds; `fpr` is what it stands for.
        calibrated: whether the thresholds speak for this image.
        probability: P(attacked); None where the contract knows none.
        drift: makes `omega_drift`; only until `settled`.
        omega_drift: distance of this image's omega from the clean mean for each block, in clean standard deviations.
        data: the file as sent, or the bytes of a tensor; only until `settled`, or until it is told of where it is kept.
        sha256: of it.
        shape: of the tensor; None for a file.
    """

    mode: Mode
    verdict: Verdict
    score: float
    threshold: float
    fpr: float
    domain: str
    calibrated: bool
    probability: float | None
    policy: Policy
    decision: Decision
    data: bytes | None = None
    sha256: str | None = None
    drift: Callable[[], Mapping[str, float]] | None = None
    omega_drift: Mapping[str, float] | None = None
    shape: tuple[int, ...] | None = None

    def settled(self) -> Image:
        """This image by its hash and its drift, without its data."""
        sha256 = self.sha256 if self.data is None else hashlib.sha256(self.data).hexdigest()
        omega_drift = self.omega_drift if self.drift is None else self.drift()
        return replace(self, data=None, sha256=sha256, drift=None, omega_drift=omega_drift)


@dataclass(frozen=True, slots=True)
class Observation:
    """Something that was seen once.

    Attributes:
        subject: of what.
        time: UTC, milliseconds since 1970.
        count: of images.
        image: the one of these with the highest score, where it is about images.
        detail: a sentence for people.
    """

    subject: Subject
    time: int
    count: int = 1
    request_id: str | None = None
    image: Image | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One event of a finding: it began, it went on, it has ended.

    Attributes:
        id: the same in all events of this finding.
        time: of this event; all times are UTC, milliseconds since 1970.
        count: images so far; `new` of them since the last event.
        first_request_id, last_request_id: of the requests that they came in.
        image: the one with the highest score so far.
        clients: how many clients' observations are in it, at least, where it is not about one.
        scores: the highest of its images, rising, `MOST_SCORES` at most.
    """

    id: str
    subject: Subject
    activity: Activity
    time: int
    first_time: int
    last_time: int
    count: int
    new: int
    first_request_id: str | None = None
    last_request_id: str | None = None
    image: Image | None = None
    detail: str = ""
    clients: int = 1
    scores: tuple[float, ...] = ()
