"""Is somebody attacking, and is the detector still itself? What verdicts, scores and omega say over time.

Three questions, each answered by plain values that `detection_metrics` exports:

- Are more images flagged than the thresholds were set to flag? A Bernoulli CUSUM (E. S. Page, "Continuous inspection
  schemes", 1954) of each threshold, against that threshold's own false-positive rate.
- Do scores and omega still look as on the clean validation images that the contract describes? Population stability
  index of the scores, and the distance of omega's mean for each block, over a window that decays.
- Does the detector still see what it must see? `canaries` sends golden images; how they fared is kept here.

Who sends what is flagged is kept by `clients`.

Plain Python and numpy. The work for an image does not grow with traffic: some twenty additions, no allocation but for
one row of omega where it is sampled.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..core.contract import Contract, Reference, Thresholds
from ..core.engine import Model
from ..core.verdict import Verdict, judge
from ..versions.events import Events
from .clients import TopClients

Flag = Literal["suspicious", "adversarial"]
FLAGS: tuple[Flag, ...] = ("suspicious", "adversarial")
Result = Literal["right", "wrong", "failed"]
RESULTS: tuple[Result, ...] = ("right", "wrong", "failed")

DESIGN_RATIO = 3.0  # the CUSUM is the quickest test there is for a rate this many times the target
# One false alarm in 30 days of 100 images a second, for each threshold; see `limit_for`.
ALARM_IMAGES = 100 * 86_400 * 30
CUSUM_ROOM = 1.5  # the statistic stops at this many limits, so that an alarm ends soon after its attack
SCORE_HALF_LIFE_IMAGES = 2_000
OMEGA_HALF_LIFE_IMAGES = 500
OMEGA_EVERY = 8  # requests between two that omega is read from
LEAST_SHARE = 0.002  # score bins that hold less of the reference are merged into their neighbour
MOST_WATCHES = 16
CANARIES_REMEMBERED = 32


def limit_for(images: float) -> float:
    """The CUSUM limit with at most one false alarm in `images` clean images on average.

    A CUSUM of log-likelihood ratios with limit h has a mean time between false alarms of at least e^h observations
    (G. Lorden, "Procedures for reacting to a change in distribution", 1971), whatever the two rates are.
    """
    return math.log(images)


class Cusum:
    """Bernoulli CUSUM: S <- max(0, S + log-likelihood ratio of 'rate' against 'target').

    Args:
        target: share of images that are flagged when nobody attacks.
        limit: the alarm is raised where `value` is at least this, and taken back below half of it.
        rate: share to be found soonest; default `DESIGN_RATIO` times the target. Larger shares are found sooner still.
    """

    __slots__ = ("_most", "_not", "_yes", "alarms", "flagged", "limit", "raised", "value")

    def __init__(self, target: float, limit: float, rate: float | None = None) -> None:
        rate = min(DESIGN_RATIO * target, (1 + target) / 2) if rate is None else rate
        if not 0 < target < rate < 1:
            raise ValueError(f"needs 0 < target < rate < 1, not {target} and {rate}")
        self._yes = math.log(rate / target)
        self._not = math.log((1 - rate) / (1 - target))
        self._most = CUSUM_ROOM * limit
        self.limit = limit
        self.value = 0.0
        self.raised = False
        self.alarms = 0
        self.flagged = 0  # images

    def add(self, flagged: bool) -> None:
        """One image."""
        self.flagged += flagged
        value = self.value + (self._yes if flagged else self._not)
        self.value = value = 0.0 if value < 0 else min(value, self._most)
        if self.raised:
            self.raised = value >= self.limit / 2
        elif value >= self.limit:
            self.raised = True
            self.alarms += 1

    @property
    def steps(self) -> tuple[float, float]:
        """What a flagged image adds, and what any other one does (negative)."""
        return self._yes, self._not


def score_bins(thresholds: Thresholds, reference: Reference) -> tuple[list[float], list[float]]:
    """Upper edges of B score bins, the last one infinite, and the share [B] of clean images in each.

    A histogram of even bins sees nothing below its first edge, and that is where a sharp detector puts nearly every
    clean image. But the thresholds are quantiles of the same distribution, so they split that bin. A bin with
    less than `LEAST_SHARE` joins the one before it: an expected count near zero would make any statistic jump.
    """
    above = {thresholds.suspicious.score: thresholds.suspicious.fpr}  # score -> share of clean images over it
    above[thresholds.adversarial.score] = thresholds.adversarial.fpr
    total = sum(reference.counts)
    left = total
    for edge, count in zip(reference.edges[1:-1], reference.counts[:-1], strict=True):
        left -= count
        above.setdefault(edge, left / total if total else 0.0)
    edges: list[float] = []
    shares: list[float] = []
    before = 1.0
    for edge in sorted(above):
        share = before - above[edge]
        if share >= LEAST_SHARE and above[edge] >= LEAST_SHARE:
            edges.append(edge)
            shares.append(share)
            before = above[edge]
    return [*edges, math.inf], [*shares, before]


class ScoreDrift:
    """Population stability index of recent scores against the reference, older ones fading by half each half-life.

    0 is no difference; under no drift it is about (bins - 1) / images. 0.1 is commonly called small, 0.25 a shift.
    """

    __slots__ = ("_edges", "_expected", "_grow", "_mass", "_squares", "_weight")

    def __init__(self, thresholds: Thresholds, reference: Reference, half_life: float = SCORE_HALF_LIFE_IMAGES) -> None:
        self._edges, self._expected = score_bins(thresholds, reference)
        self._mass = [0.0] * len(self._edges)
        self._grow = 2 ** (1 / half_life)
        self._weight = 1.0
        self._squares = 0.0

    def add(self, score: float) -> None:
        """One image. Newer ones weigh more, so that nothing else needs to be touched."""
        weight = self._weight
        self._mass[bisect_left(self._edges, score)] += weight
        self._squares += weight * weight
        self._weight = weight * self._grow
        if weight > 1e12:
            self._mass = [mass / weight for mass in self._mass]
            self._squares /= weight * weight
            self._weight = 1.0

    @property
    def images(self) -> float:
        """How many images of equal weight the window is worth."""
        return sum(self._mass) ** 2 / self._squares if self._squares else 0.0

    @property
    def value(self) -> float:
        """The index; 0 before the first image."""
        total = sum(self._mass)
        if not total:
            return 0.0
        index = 0.0
        for mass, expected in zip(self._mass, self._expected, strict=True):
            share = max(mass / total, 1e-4)  # an empty bin must not make the logarithm infinite
            index += (share - expected) * math.log(share / expected)
        return index


class OmegaDrift:
    """How far the recent mean of omega lies from the clean one, in clean standard deviations, for each block.

    For a block with channels c: sqrt(mean_c (m_c - mean_c)^2 / mean_c std_c^2). Under no drift it is about
    1 / sqrt(images); pooling keeps a channel that hardly ever moves from drowning the others.
    """

    __slots__ = ("_blocks", "_keep", "_mean", "_recent", "_scratch", "_sum", "_sum_squares", "_variance")

    def __init__(self, contract: Contract, half_life: float = OMEGA_HALF_LIFE_IMAGES) -> None:
        self._blocks = block_ranges(contract)
        self._mean = contract.reference.omega_mean
        std = contract.reference.omega_std.astype(np.float64)
        self._variance = {name: float(np.mean(std[first:last] ** 2)) for name, (first, last) in self._blocks.items()}
        self._recent = np.zeros_like(self._mean)
        self._scratch = np.empty_like(self._mean)
        self._keep = 0.5 ** (1 / half_life)
        self._sum = self._sum_squares = 0.0

    def add(self, row: NDArray[np.float32]) -> None:
        """omega [C] float32 of one image; allocates nothing."""
        weight = 1 - self._keep
        self._recent *= self._keep
        np.multiply(row, weight, out=self._scratch)
        self._recent += self._scratch
        self._sum = self._sum * self._keep + weight
        self._sum_squares = self._sum_squares * self._keep**2 + weight**2

    @property
    def images(self) -> float:
        """How many images of equal weight the window is worth."""
        return self._sum**2 / self._sum_squares if self._sum_squares else 0.0

    def values(self) -> dict[str, float]:
        """The distance of each block; 0 before the first image."""
        if not self._sum:
            return dict.fromkeys(self._blocks, 0.0)
        off = (self._recent / self._sum).astype(np.float64) - self._mean
        return {
            name: math.sqrt(float(np.mean(off[first:last] ** 2)) / (self._variance[name] or 1.0))
            for name, (first, last) in self._blocks.items()
        }


def block_ranges(contract: Contract) -> dict[str, tuple[int, int]]:
    """Block name -> its channels [first, last) of omega; a block is what stands before the last dot."""
    ranges: dict[str, tuple[int, int]] = {}
    for part in contract.omega:
        name = part.name.rpartition(".")[0] or part.name
        first = ranges[name][0] if name in ranges else part.offset
        ranges[name] = (first, part.offset + part.length)
    return ranges


class Watch:
    """What one version of a model has told its users lately.

    Attributes:
        model: which.
        cusums: one for each threshold.
        scores, omega: drift.
        calibrated, uncalibrated: images seen. Only calibrated ones count in the CUSUMs and in `scores`: the
            false-positive rates do not hold for a picture that was scaled or lossily compressed.
        canaries: (verdict that a golden image must get, how the answer was) -> how often, 0 included.
    """

    def __init__(self, model: Model, alarm_images: float = ALARM_IMAGES) -> None:
        contract = model.contract
        limit = limit_for(alarm_images)
        self.model = model
        self.cusums: dict[Flag, Cusum] = {
            "suspicious": Cusum(contract.thresholds.suspicious.fpr, limit),
            "adversarial": Cusum(contract.thresholds.adversarial.fpr, limit),
        }
        self.scores = ScoreDrift(contract.thresholds, contract.reference)
        self.omega = OmegaDrift(contract)
        self.calibrated = 0
        self.uncalibrated = 0
        golden = contract.golden.outputs["p_type"][:, 0].tolist()
        expected = sorted({judge(score, contract.thresholds) for score in golden})
        # From 0 on: an alert on an increase cannot see a series that begins at 1.
        self.canaries: dict[tuple[Verdict, Result], int] = {(e, r): 0 for e in expected for r in RESULTS}
        self._detected: deque[bool] = deque(maxlen=CANARIES_REMEMBERED)
        self._requests = 0

    def answered(
        self,
        verdicts: Sequence[Verdict],
        scores: Sequence[float],
        calibrated: Sequence[bool],
        omega: NDArray[np.float32],
    ) -> None:
        """One request of N images; omega [N, C]."""
        for verdict, score, counts in zip(verdicts, scores, calibrated, strict=True):
            if not counts:
                self.uncalibrated += 1
                continue
            self.calibrated += 1
            adversarial = verdict == "adversarial"
            self.cusums["adversarial"].add(adversarial)
            self.cusums["suspicious"].add(adversarial or verdict == "suspicious")
            self.scores.add(score)
        if self._requests % OMEGA_EVERY == 0:
            self.omega.add(omega[0] if len(omega) == 1 else omega.mean(axis=0))
        self._requests += 1

    def canary(self, expected: Verdict, result: Result) -> None:
        """One golden image has been sent."""
        self.canaries[expected, result] += 1
        if expected != "clean":
            self._detected.append(result == "right")

    @property
    def detection(self) -> float:
        """Share of the last attacked golden images that were seen for what they are; NaN before the first."""
        return sum(self._detected) / len(self._detected) if self._detected else math.nan


class Monitor(Events):
    """Everything that is watched in one process: a `Watch` for each version that is open, and the clients."""

    def __init__(self, clients: TopClients | None = None, alarm_images: float = ALARM_IMAGES) -> None:
        self._alarm_images = alarm_images
        self._watches: dict[tuple[str, str], Watch] = {}
        self.clients = TopClients() if clients is None else clients

    def opened(self, model: Model) -> None:
        self.watch(model)

    def closed(self, model: Model) -> None:
        self._watches.pop((model.name, model.version), None)

    def watch(self, model: Model) -> Watch:
        """The watch of this version; a new one where the file behind the version is another."""
        key = (model.name, model.version)
        watch = self._watches.get(key)
        if watch is None or watch.model.sha256 != model.sha256:
            if len(self._watches) >= MOST_WATCHES:
                del self._watches[next(iter(self._watches))]
            watch = self._watches[key] = Watch(model, self._alarm_images)
        return watch

    def __iter__(self) -> Iterator[Watch]:
        return iter(list(self._watches.values()))

    def told(self) -> dict[str, Any]:
        """What the supervisor of several workers needs beyond the metrics; see `workers.metrics_merge`."""
        return {
            "cusums": [
                [
                    *(watch.model.name, watch.model.version, watch.model.sha256, flag),
                    *(*cusum.steps, cusum.limit, CUSUM_ROOM),
                    *(watch.calibrated, cusum.flagged),
                ]
                for watch in self
                for flag, cusum in watch.cusums.items()
            ],
            "clients": {
                "total": self.clients.total,
                "largest": [[c.name, c.flagged, c.most_too_many] for c in self.clients.top(len(self.clients))],
            },
            "open": [[watch.model.name, watch.model.version] for watch in self],
        }
