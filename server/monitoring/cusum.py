"""A Bernoulli CUSUM over images: one by one in a server, in blocks where the images of several workers are added up.

Plain Python without numpy, which the supervisor of several workers does not load.
"""

from __future__ import annotations

import math

DESIGN_RATIO = 3.0  # the CUSUM is the quickest test there is for a rate this many times the target
# One false alarm in 30 days of 100 images a second, for each threshold; see `limit_for`.
ALARM_IMAGES = 100 * 86_400 * 30
CUSUM_ROOM = 1.5  # the statistic stops at this many limits, so that an alarm ends soon after its attack


def limit_for(images: float) -> float:
    """The CUSUM limit with at most one false alarm in `images` clean images on average.

    A CUSUM of log-likelihood ratios with limit h has a mean time between false alarms of at least e^h observations
    (G. Lorden, "Procedures for reacting to a change in distribution", 1971), whatever the two rates are.
    """
    return math.log(images)


class Cusum:
    """Bernoulli CUSUM: S <- max(0, S + log-likelihood ratio of 'rate' against 'target'), from 0.

    Args:
        target: share of images that are flagged when nobody attacks.
        limit: the alarm is raised where `value` is at least this, and ended below half of it.
        rate: share to be found soonest; default `DESIGN_RATIO` times the target. Larger shares are found sooner still.
    """

    __slots__ = ("_max_value", "_not", "_yes", "alarms", "flagged", "limit", "raised", "target", "value")

    def __init__(self, target: float, limit: float, rate: float | None = None) -> None:
        rate = min(DESIGN_RATIO * target, (1 + target) / 2) if rate is None else rate
        if not 0 < target < rate < 1:
            raise ValueError(f"needs 0 < target < rate < 1, not {target} and {rate}")
        self._yes = math.log(rate / target)
        self._not = math.log((1 - rate) / (1 - target))
        self._max_value = CUSUM_ROOM * limit
        self.target = target
        self.limit = limit
        self.value = 0.0
        self.raised = False
        self.alarms = 0
        self.flagged = 0  # images

    def add(self, images: int, flagged: int) -> None:
        """A block of images, of which `flagged` were.

        The summed log-likelihood ratios of a block are one log-likelihood ratio, so the bound of `limit_for` holds with
        blocks for observations, of which there are no more than images.
        """
        self.flagged += flagged
        value = self.value + flagged * self._yes + (images - flagged) * self._not
        self.value = value = 0.0 if value < 0 else min(value, self._max_value)
        if self.raised:
            self.raised = value >= self.limit / 2
        elif value >= self.limit:
            self.raised = True
            self.alarms += 1

    @property
    def steps(self) -> tuple[float, float]:
        """What a flagged image adds, and what any other one does (negative)."""
        return self._yes, self._not
