"""Detects attacks and drift from verdicts, scores and omega over time.

Three questions, each answered by plain values that `detection_metrics` exports (made by `cusum` and `statistics`):

- Are more images flagged than the thresholds were set to flag? A Bernoulli CUSUM (E. S. Page, "Continuous inspection
  schemes", 1954) of each threshold, against that threshold's own false-positive rate. Of images for which the
  thresholds do not speak: are there more, or more of them flagged, than was usual here? See `adaptive_cusum`.
- Do scores and omega still look as on the clean validation images that the contract describes? Population stability
  index of the scores, and the distance of omega's mean for each block, over a window that decays.
- Does the detector still detect? `golden_probe` sends golden images; the outcomes are counted here.

`clients` counts the flagged images of each client.

Plain Python and numpy. The work for an image does not grow with traffic: some twenty additions, no allocation but for
one row of omega where it is sampled.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..core.engine import Model
from ..core.verdict import VERDICTS, Judgement, Verdict, golden_verdicts
from ..versions.events import Events
from .adaptive_cusum import Uncalibrated
from .clients import TopClients
from .cusum import ALARM_IMAGES, Cusum, limit_for
from .snapshot import CusumCounts, UncalibratedCounts
from .statistics import OmegaDrift, ScoreDrift

Flag = Literal["suspicious", "adversarial"]
FLAGS: tuple[Flag, ...] = ("suspicious", "adversarial")
ProbeResult = Literal["right", "wrong", "failed"]
PROBE_RESULTS: tuple[ProbeResult, ...] = ("right", "wrong", "failed")

OMEGA_EVERY = 8  # requests between two that omega is read from
MAX_WATCHES = 16
PROBES_REMEMBERED = 32


class Watch:
    """Statistics of what one version of a model has answered.

    Attributes:
        model: the version.
        cusums: one for each threshold.
        scores, omega: drift.
        images: (calibrated, verdict) -> images seen, 0 included. Only calibrated ones count in `cusums`, and of those
            the ones of the first domain in `scores` and `omega`, whose reference is of that domain.
        uncalibrated: what was usual of the others, and whether it still is.
        reasons: why they are not calibrated, in the words of the answer -> images.
        golden_probes: (expected verdict of the golden image, result) -> count, 0 included.
    """

    def __init__(self, model: Model, alarm_images: float = ALARM_IMAGES) -> None:
        contract = model.contract
        limit = limit_for(alarm_images)
        self.model = model
        self.cusums: dict[Flag, Cusum] = {
            "suspicious": Cusum(contract.thresholds.suspicious.fpr, limit),
            "adversarial": Cusum(contract.thresholds.adversarial.fpr, limit),
        }
        self.scores = ScoreDrift(contract.domains[0])
        self.omega = OmegaDrift(contract)
        self.images: dict[tuple[bool, Verdict], int] = {(c, v): 0 for c in (True, False) for v in VERDICTS}
        self.uncalibrated = Uncalibrated(limit)
        self.reasons: Counter[str] = Counter()
        expected = sorted(set(golden_verdicts(contract)))
        # From 0 on: an alert on an increase cannot see a series that begins at 1.
        self.golden_probes: dict[tuple[Verdict, ProbeResult], int] = {
            (e, r): 0 for e in expected for r in PROBE_RESULTS
        }
        self._detected: deque[bool] = deque(maxlen=PROBES_REMEMBERED)
        self._requests = 0

    def answered(
        self,
        judgements: Sequence[Judgement],
        omega: NDArray[np.float32],
    ) -> None:
        """One request of N images; omega [N, C]."""
        first = self.model.contract.domains[0].name
        known = []  # rows that the reference speaks of
        others = suspicious = adversarial = 0
        for row, judged in enumerate(judgements):
            verdict = judged.verdict
            self.images[judged.calibrated, verdict] += 1
            if judged.why is not None:
                self.reasons[judged.why] += 1
                others += 1
                suspicious += verdict != "clean"
                adversarial += verdict == "adversarial"
                continue
            self.cusums["adversarial"].add(1, verdict == "adversarial")
            self.cusums["suspicious"].add(1, verdict != "clean")
            if judged.applied.name == first:
                self.scores.add(judged.score)
                known.append(row)
        self.uncalibrated.add(len(judgements), others, suspicious, adversarial)
        if known and self._requests % OMEGA_EVERY == 0:
            self.omega.add(omega[known[0]] if len(known) == 1 else omega[known].mean(axis=0))
        self._requests += 1

    def count(self, calibrated: bool) -> int:
        """Images seen for which the thresholds speak, or do not."""
        return sum(self.images[calibrated, verdict] for verdict in VERDICTS)

    def golden_probe(self, expected: Verdict, result: ProbeResult) -> None:
        """One golden image has been sent."""
        self.golden_probes[expected, result] += 1
        if expected != "clean":
            self._detected.append(result == "right")

    @property
    def detection(self) -> float:
        """Share of the last adversarial golden images that were flagged; NaN before the first."""
        return sum(self._detected) / len(self._detected) if self._detected else math.nan


class Monitor(Events):
    """The statistics of one process: a `Watch` for each open version, and the top clients."""

    def __init__(self, clients: TopClients | None = None, alarm_images: float = ALARM_IMAGES) -> None:
        self._alarm_images = alarm_images
        self._watches: dict[tuple[str, int], Watch] = {}
        self.clients = TopClients() if clients is None else clients

    def opened(self, model: Model) -> None:
        self.of(model)

    def closed(self, model: Model) -> None:
        self._watches.pop((model.name, model.version), None)

    def of(self, model: Model) -> Watch:
        """The watch of this version; a new one where the file behind the version is another."""
        key = (model.name, model.version)
        watch = self._watches.get(key)
        if watch is None or watch.model.sha256 != model.sha256:
            if len(self._watches) >= MAX_WATCHES:
                del self._watches[next(iter(self._watches))]
            watch = self._watches[key] = Watch(model, self._alarm_images)
        return watch

    def __iter__(self) -> Iterator[Watch]:
        return iter(list(self._watches.values()))

    def cusum_counts(self) -> list[CusumCounts]:
        """What the CUSUMs were made of, so that those of several workers become one."""
        return [
            CusumCounts(
                *(watch.model.name, str(watch.model.version), watch.model.sha256, flag),
                *(cusum.target, cusum.limit, watch.count(calibrated=True), cusum.flagged),
            )
            for watch in self
            for flag, cusum in watch.cusums.items()
        ]

    def uncalibrated_counts(self) -> list[UncalibratedCounts]:
        """As `cusum_counts`, of the uncalibrated images."""
        limit = limit_for(self._alarm_images)
        rows = []
        for watch in self:
            clean, suspicious, adversarial = (watch.images[False, verdict] for verdict in VERDICTS)
            others = clean + suspicious + adversarial
            images = watch.count(calibrated=True) + others
            which = (watch.model.name, str(watch.model.version), watch.model.sha256)
            rows.append(UncalibratedCounts(*which, limit, images, others, suspicious + adversarial, adversarial))
        return rows
